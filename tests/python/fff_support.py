"""What the tests of trees share: random layers of every form, and the float64 oracle of a layer."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastffn as ff
from reference import fff as reference


def random_weights(
    form: str = "leaf", *, trees: int = 1, depth: int = 3, d_model: int = 24, d_out: int = 20, width: int = 5,
    bias: bool = True, thresholds: bool = False, master: int = 0, activation: str = "gelu", tie: str | None = None,
    seed: int = 0,
) -> ff.FffWeights:  # fmt: skip
    """Weights of one form; `width` is that of the leaves, `master` that of the master leaf."""
    rng = np.random.default_rng([seed, trees, depth, d_model])

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    leaf = form == "leaf"
    count, leaves = (1 << depth) - 1 if leaf else (2 << depth) - 1, 1 << depth
    parts: dict[str, Any] = {"nodes": normal(trees, count, d_model, scale=d_model**-0.5)}
    if bias:
        parts["node_biases"] = normal(trees, count, scale=0.3)
    if thresholds:
        parts["thresholds"] = normal(trees, count, scale=0.3)
    if leaf:
        parts["w_up"] = normal(trees, leaves, width, d_model, scale=d_model**-0.5)
        parts["w_down"] = normal(trees, leaves, d_out, width, scale=width**-0.5)
        if bias:
            parts |= {"b_up": normal(trees, leaves, width), "b_down": normal(trees, leaves, d_out)}
    else:
        parts["w_out"] = normal(trees, count, d_out)
    if master:
        parts["master"] = ff.FffMaster(
            normal(master, d_model, scale=d_model**-0.5), normal(d_out, master, scale=master**-0.5),
            normal(master) if bias else None, normal(d_out) if bias else None, 0.7,
        )  # fmt: skip
    return ff.FffWeights(activation=activation, tie=tie, **parts)


def tokens(count: int, d_model: int = 24, seed: int = 1) -> Any:
    """f32 inputs [count, d_model]."""
    return np.random.default_rng(seed).standard_normal((count, d_model)).astype(np.float32)


def oracle(weights: ff.FffWeights, x: Any, leaf: Any = None) -> tuple[Any, reference.Descent]:
    """y and the ways of rows x, in float64; `leaf` [tokens, trees] forces the ways."""
    x = np.asarray(x, np.float64)
    shared = {"depth": weights.depth, "activation": weights.activation, "tie": weights.tie, "leaf": leaf}
    if weights.w_out is not None:
        y, way = reference.all_node(x, weights.nodes, weights.w_out, weights.node_biases, weights.thresholds, **shared)
    else:
        y, way = reference.leaf_form(
            x, weights.nodes, weights.w_up, weights.w_down, weights.node_biases, weights.thresholds, weights.b_up,
            weights.b_down, **shared,
        )  # fmt: skip
    if weights.master is not None:
        m = weights.master
        y = reference.with_master(
            y, x, m.mix, m.w_up, m.w_down, m.b_up, m.b_down, activation=weights.activation
        )  # fmt: skip
    return y, way
