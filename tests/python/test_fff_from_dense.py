"""A dense layer → a tree: exact where nothing is lost, better than chance where something is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastffn as ff
from fff_support import oracle
from reference import ffn as dense

D_MODEL, D_FF, D_OUT = 12, 48, 10


def layer(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "w_up": rng.standard_normal((D_FF, D_MODEL)).astype(np.float32) / D_MODEL**0.5,
        "w_down": rng.standard_normal((D_OUT, D_FF)).astype(np.float32) / D_FF**0.5,
        "b_up": rng.standard_normal(D_FF).astype(np.float32) - 1,
        "b_down": rng.standard_normal(D_OUT).astype(np.float32),
    }


def clustered(count: int, seed: int = 0, clusters: int = 8) -> Any:
    centres = 2.5 * np.random.default_rng(99).standard_normal((clusters, D_MODEL))
    rng = np.random.default_rng(seed)
    return (centres[rng.integers(0, clusters, count)] + 0.2 * rng.standard_normal((count, D_MODEL))).astype(np.float32)


def exact(parts: dict[str, Any], x: Any, activation: str = "relu") -> Any:
    return dense.ffn(x, **parts, activation=activation)


def error(weights: ff.FffWeights, parts: dict[str, Any], x: Any, activation: str = "relu") -> float:
    """Of the tree against the dense layer, over the outputs' spread."""
    y = exact(parts, x, activation)
    return float(np.linalg.norm(oracle(weights, x)[0] - y) / np.linalg.norm(y - y.mean(axis=0)))


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_leaves_of_full_width_lose_nothing(activation: str) -> None:
    parts, x = layer(), clustered(64)
    weights = ff.fff_from_dense(x, **parts, depth=2, leaf_width=D_FF, activation=activation)
    assert weights.w_up is not None and weights.w_up.shape == (1, 4, D_FF, D_MODEL)
    assert error(weights, parts, clustered(40, seed=5), activation) < 1e-5


def test_depth_zero_keeps_the_strongest_neurons() -> None:
    parts, x = layer(), clustered(200)
    weights = ff.fff_from_dense(x, **parts, depth=0, leaf_width=6, activation="relu", refit=False)
    hidden = np.maximum(x @ parts["w_up"].T + parts["b_up"], 0)
    strongest = np.argsort(-(hidden**2).sum(0) * (parts["w_down"] ** 2).sum(0))[:6]
    assert weights.w_up is not None
    np.testing.assert_array_equal(weights.w_up[0, 0], parts["w_up"][np.sort(strongest)])
    # What the others do on average is in the bias: the mean output is right.
    np.testing.assert_allclose(oracle(weights, x)[0].mean(0), exact(parts, x).mean(0), atol=1e-5)


def test_calibration_tokens_share_leaves_evenly() -> None:
    x = np.random.default_rng(0).standard_normal((256, D_MODEL)).astype(np.float32)
    weights = ff.fff_from_dense(x, **layer(), depth=4, leaf_width=8, activation="relu")
    counts = np.bincount(oracle(weights, x)[1].leaf[:, 0], minlength=16)
    assert counts.min() >= 12 and counts.max() <= 20, counts


@pytest.mark.parametrize("refit", [True, False])
def test_clusters_are_found(refit: bool) -> None:
    parts, x, new = layer(), clustered(1024), clustered(400, seed=7)
    tree = ff.fff_from_dense(x, **parts, depth=3, leaf_width=8, activation="relu", refit=refit)
    # The same leaf width without a tree, and the same tree with its decisions exchanged at random.
    alone = ff.fff_from_dense(x, **parts, depth=0, leaf_width=8, activation="relu", refit=refit)
    shuffled = ff.FffWeights(
        nodes=tree.nodes[:, ::-1].copy(), node_biases=tree.node_biases, w_up=tree.w_up, w_down=tree.w_down,
        b_up=tree.b_up, b_down=tree.b_down, activation="relu",
    )  # fmt: skip
    found = error(tree, parts, new)
    assert found < 0.5 * error(alone, parts, new) and found < 0.3 * error(shuffled, parts, new), found
    assert found < (0.15 if refit else 0.5)


def test_refit_helps_on_new_tokens() -> None:
    parts, x, new = layer(), clustered(1024), clustered(400, seed=7)
    errors = [
        error(ff.fff_from_dense(x, **parts, depth=2, leaf_width=6, activation="gelu", refit=refit), parts, new, "gelu")
        for refit in (False, True)
    ]
    assert errors[1] < errors[0]


def test_more_width_loses_less() -> None:
    parts, x, new = layer(), clustered(1024), clustered(400, seed=7)
    errors = [
        error(ff.fff_from_dense(x, **parts, depth=3, leaf_width=width, activation="relu"), parts, new)
        for width in (2, 8, 24, 48)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-5


def test_a_gated_layer_keeps_its_gates() -> None:
    gate = np.random.default_rng(5).standard_normal((D_FF, D_MODEL)).astype(np.float32) / D_MODEL**0.5
    parts = {**layer(), "w_gate": gate, "b_gate": np.full(D_FF, -0.5, np.float32)}
    x, new = clustered(1024), clustered(400, seed=7)
    weights = ff.fff_from_dense(x, **parts, depth=3, leaf_width=12, activation="silu")
    assert weights.w_up is not None
    assert all((row == gate).all(axis=1).any() for row in weights.w_up[0, 0])
    found = error(weights, parts, new, "silu")
    alone = error(ff.fff_from_dense(x, **parts, depth=0, leaf_width=12, activation="silu"), parts, new, "silu")
    assert found < 0.3 and found < 0.5 * alone, (found, alone)


def test_the_same_seed_the_same_tree() -> None:
    trees = [ff.fff_from_dense(clustered(300), **layer(), depth=3, leaf_width=6, activation="gelu") for _ in range(2)]
    for name in ("nodes", "w_up", "w_down", "b_down"):
        np.testing.assert_array_equal(getattr(trees[0], name), getattr(trees[1], name))


def test_equal_tokens_do_not_break_it() -> None:
    weights = ff.fff_from_dense(np.ones((16, D_MODEL)), **layer(), depth=2, leaf_width=D_FF, activation="relu")
    assert error(weights, layer(), clustered(10)) < 1e-5
    assert all(np.isfinite(a).all() for a in (weights.nodes, weights.w_down, weights.b_down) if a is not None)


def test_without_biases_and_from_torch() -> None:
    torch = pytest.importorskip("torch")
    parts = {name: torch.from_numpy(value) for name, value in layer().items() if not name.startswith("b")}
    x = torch.from_numpy(clustered(128).reshape(4, 32, D_MODEL))
    weights = ff.fff_from_dense(x, **parts, depth=2, leaf_width=D_FF, activation="relu")
    plain = {name: value.numpy() for name, value in parts.items()}
    assert error(weights, plain, clustered(30, seed=3)) < 1e-5


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        (r"x has shape \(5, 3\), expected \(..., 12\)", {"x": np.zeros((5, 3))}),
        (r"w_up and w_down have shapes \(48, 12\) and \(48, 10\)", {"w_down": np.zeros((48, 10))}),
        (r"b_up has shape \(47,\), expected \(48,\)", {"b_up": np.zeros(47)}),
        (r"w_gate has shape \(48, 11\), expected \(48, 12\)", {"w_gate": np.zeros((48, 11))}),
        ("depth is 3 and x has 7 tokens", {"x": np.zeros((7, 12))}),
        ("leaf_width is 49, expected 1 to d_ff, 48", {"leaf_width": 49}),
        ("x has values that are not finite", {"x": np.full((8, 12), np.nan)}),
    ],
)
def test_refusals(message: str, changes: dict[str, Any]) -> None:
    arguments = {"x": clustered(64), **layer(), "depth": 3, "leaf_width": 4, "activation": "relu", **changes}
    with pytest.raises(ValueError, match=f"fff_from_dense: {message}"):
        ff.fff_from_dense(**arguments)
