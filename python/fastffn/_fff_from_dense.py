"""A dense feed-forward layer → a tree of leaves that hold its neurons: where training of a tree may begin.

No tree has been published that replaces a trained dense layer as it is. This one is honest about being a start: routing is
fitted to where the layer's neurons are active on calibration inputs, each leaf gets the neurons that matter most there, and
what the others did is made up for as far as a bias and the leaf's own neurons can. What it loses depends on how clustered
the inputs are. On real transformers it is much: with 16 leaves of 96 of the 1536 neurons, all-MiniLM-L6-v2's layers
(GELU) are off by 8 to 34% of their outputs' spread on new tokens, little less than with one such leaf for all tokens;
SmolLM2-135M's (SiLU, gated) by 44 to 86%. Measure it on your layer, and train on from it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastffn._fff_weights import F32, FffWeights

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

_POWER_STEPS = 12  # of the power iteration that finds a direction to split along; it need not converge
_LLOYD_STEPS = 6  # of the balanced 2-means that follows


def fff_from_dense(
    x: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    b_gate: Any = None,
    *,
    depth: int,
    leaf_width: int,
    activation: str,
    refit: bool = True,
    seed: int = 0,
) -> FffWeights:
    """Leaf-form trees from a dense layer: clustered leaves, to start training from.

    1. Tokens are split in two at every node by a balanced 2-means over their hidden activations (each weighted by what its
       neuron adds to the output); a hyperplane over x is fitted to that split by ridge regression, and moved so that half of
       the tokens lie on either side. Splitting goes on with the tokens as the hyperplane divides them.
    2. A leaf takes the `leaf_width` neurons with the largest Σ (activation · ‖column of w_down‖)² over its tokens. Neurons
       may be in several leaves, and in none.
    3. The leaf's output bias gets the mean of what the other neurons added there; with `refit`, the leaf's w_down is also
       moved by ridge regression towards the dense layer's outputs on its tokens.

    Leaves have no gate. Of a gated layer, act(gate x) · up x, a leaf's neurons are act(gate x), and what the products with
    up x add is fitted linearly, as well as that goes: there is even less to expect before training.

    Args:
        x: calibration inputs [..., d_model], the more the better: those the layer truly sees; 2^depth tokens at least.
        w_up, w_down, w_gate, b_up, b_down, b_gate: of the dense layer, as in :func:`fastffn.ffn`.
        depth, leaf_width: of the tree; 2^depth · leaf_width below d_ff leaves neurons out for good, and a leaf_width of
            d_ff loses nothing (and gains nothing).
        activation: as in :func:`fastffn.ffn`.
        refit: step 3's regression.
        seed: of the random start of each split's direction.

    Returns:
        Plain weights of one tree; pack them with :func:`fastffn.pack_fff`, or train on with ``fastffn.torch.FFF.from_weights``.

    Raises:
        ValueError: shapes that do not belong together, too few tokens, numbers out of range.
    """
    dense = _Dense(x, w_up, w_down, w_gate, b_up, b_down, b_gate, activation)
    _check_sizes(dense, depth, leaf_width)
    rows, down, hidden = dense.rows, dense.down, dense.hidden
    strength = np.linalg.norm(down, axis=0)
    features = hidden * strength
    generator = np.random.default_rng(seed)
    leaves, d_model = 1 << depth, rows.shape[1]
    nodes, biases = np.zeros((leaves - 1, d_model), np.float32), np.zeros(leaves - 1, np.float32)
    groups = [np.arange(len(rows))]
    for level in range(depth):
        divided = []
        for place, group in enumerate(groups):
            node = (1 << level) - 1 + place
            if len(group) > 1:
                nodes[node], biases[node] = _hyperplane(rows[group], _split_scores(features[group], generator))
            right = rows[group] @ nodes[node] + biases[node] >= 0
            divided += [group[~right], group[right]]
        groups = divided
    shape_up, shape_down = (leaves, leaf_width, d_model), (leaves, down.shape[0], leaf_width)
    leaf_up, leaf_down = np.empty(shape_up, np.float32), np.empty(shape_down, np.float32)
    leaf_b_up, leaf_b_down = np.empty(shape_up[:2], np.float32), np.empty(shape_down[:2], np.float32)
    for leaf, group in enumerate(groups):
        # Ties in x may leave a leaf without tokens: it serves like a leaf of the whole layer.
        here = group if len(group) else np.arange(len(rows))
        order = np.argsort(-np.square(hidden[here] * strength, dtype=np.float64).sum(axis=0), kind="stable")
        kept = np.sort(order[:leaf_width])
        leaf_up[leaf], leaf_b_up[leaf] = dense.leaf_up[kept], dense.leaf_b_up[kept]
        leaf_down[leaf], leaf_b_down[leaf] = _outputs(dense, here, kept, refit)
    return FffWeights(
        nodes=nodes[None], node_biases=biases[None], w_up=leaf_up[None], w_down=leaf_down[None], b_up=leaf_b_up[None],
        b_down=leaf_b_down[None], activation=activation,
    )  # fmt: skip


def _split_scores(features: F32, generator: np.random.Generator) -> F64:
    """A number per token whose sign says on which side of a balanced 2-means it is."""
    centred = features - features.mean(axis=0)
    direction = np.asarray(generator.standard_normal(features.shape[1]), np.float32)
    for _ in range(_POWER_STEPS):
        direction = centred.T @ (centred @ direction)
        direction /= max(float(np.linalg.norm(direction)), 1e-30)
    scores = centred @ direction
    for _ in range(_LLOYD_STEPS):
        right = scores > np.median(scores)
        if right.all() or not right.any():
            break
        # |f - c0|² - |f - c1|² is linear in f: along the difference of the centres.
        scores = centred @ (centred[right].mean(axis=0) - centred[~right].mean(axis=0))
    return np.asarray(scores, np.float64) - float(np.median(scores))


def _hyperplane(rows: F32, scores: F64) -> tuple[F32, float]:
    """w and b with w·x + b close to the scores in sign, half of the rows on either side."""
    # Signs soften large scores, so that few tokens far out do not decide.
    target = np.tanh(scores / max(float(np.abs(scores).mean()), 1e-30))
    wide = rows.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    w = _ridge(centred, target[:, None])[:, 0]
    norm = float(np.linalg.norm(w))
    if norm < 1e-30:  # nothing to tell the tokens apart by: all go one way
        return np.zeros(rows.shape[1], np.float32), 0.0
    direction: F32 = (w / norm).astype(np.float32)
    return direction, -float(np.median(rows @ direction))


def _ridge(a: F64, b: F64) -> F64:
    """argmin ‖a·w - b‖² + λ‖w‖², λ a twentieth of the mean eigenvalue, and more where rows are few.

    Of λ from 0.01 to 0.2 this was the best on tokens not seen, at leaves of 96 neurons with 160 to 200 tokens each.
    """
    rows, width = a.shape
    scale = 0.05 * (1 + 10 * width / max(rows, 1)) * float(np.square(a).sum()) / max(width, 1) + 1e-30
    if rows < width:  # the same numbers from the smaller system
        solved: F64 = a.T @ np.linalg.solve(a @ a.T + scale * np.eye(rows), b)
        return solved
    solved = np.linalg.solve(a.T @ a + scale * np.eye(width), a.T @ b)
    return solved


def _outputs(dense: _Dense, group: I64, kept: I64, refit: bool) -> tuple[F32, F32]:
    """A leaf's w_down and b_down, from its tokens and the neurons it keeps."""
    weights = dense.down[:, kept].astype(np.float64)
    if dense.basis is not dense.hidden:
        # The multiple of a neuron that is nearest to what it does in the dense layer.
        near, true = dense.basis[np.ix_(group, kept)], dense.hidden[np.ix_(group, kept)]
        weights = weights * ((near * true).sum(axis=0) / np.maximum(np.square(near).sum(axis=0), 1e-30))
    elif len(kept) == dense.down.shape[1]:
        return dense.down[:, kept], dense.b_down  # nothing is lost
    used = dense.basis[np.ix_(group, kept)].astype(np.float64)
    lost = dense.target[group] - used @ weights.T
    mean, centre = lost.mean(axis=0), used.mean(axis=0)
    if refit:
        moved = _ridge(used - centre, lost - mean)
        weights, mean = weights + moved.T, mean - centre @ moved
    return weights.astype(np.float32), mean.astype(np.float32)


class _Dense:
    """The dense layer and what it does to the calibration rows; all f32 NumPy.

    rows [tokens, d_model]; hidden [tokens, d_ff], what w_down multiplies; basis [tokens, d_ff], what leaves can compute of it:
    act(leaf_up x + leaf_b_up), the same array as hidden unless there is a gate.
    """

    def __init__(
        self, x: Any, w_up: Any, w_down: Any, w_gate: Any, b_up: Any, b_down: Any, b_gate: Any, activation: str
    ) -> None:
        from fastffn._fff_load import _f32
        from fastffn.report.layers import activate

        up, self.down, inputs = _f32(w_up), _f32(w_down), _f32(x)
        if up.ndim != 2 or self.down.ndim != 2 or self.down.shape[1] != up.shape[0]:
            raise ValueError(
                f"fff_from_dense: w_up and w_down have shapes {up.shape} and {self.down.shape}, expected (d_ff, d_model) and "
                "(d_out, d_ff)"
            )
        d_ff, d_model = up.shape
        if inputs.ndim < 1 or inputs.shape[-1] != d_model:
            raise ValueError(f"fff_from_dense: x has shape {inputs.shape}, expected (..., {d_model})")
        self.rows = inputs.reshape(-1, d_model)
        if not np.isfinite(self.rows).all():
            raise ValueError("fff_from_dense: x has values that are not finite")
        gate = None if w_gate is None else _f32(w_gate)
        if gate is not None and gate.shape != up.shape:
            raise ValueError(f"fff_from_dense: w_gate has shape {gate.shape}, expected {up.shape} as w_up")
        biases = {}
        for name, bias, size in (
            ("b_up", b_up, d_ff),
            ("b_down", b_down, self.down.shape[0]),
            ("b_gate", b_gate, d_ff),
        ):
            biases[name] = np.zeros(size, np.float32) if bias is None else _f32(bias)
            if biases[name].shape != (size,):
                raise ValueError(f"fff_from_dense: {name} has shape {biases[name].shape}, expected ({size},)")
        self.b_down = biases["b_down"]
        self.leaf_up, self.leaf_b_up = (up, biases["b_up"]) if gate is None else (gate, biases["b_gate"])
        self.basis = activate(activation, self.rows @ self.leaf_up.T + self.leaf_b_up)
        self.hidden = self.basis if gate is None else self.basis * (self.rows @ up.T + biases["b_up"])
        self.target = self.hidden @ self.down.T + self.b_down


def _check_sizes(dense: _Dense, depth: int, leaf_width: int) -> None:
    tokens, d_ff = dense.hidden.shape
    if not 0 <= depth <= 20 or tokens < 1 << depth:
        raise ValueError(
            f"fff_from_dense: depth is {depth} and x has {tokens} tokens, expected 2^depth tokens at least"
        )
    if not 1 <= leaf_width <= d_ff:
        raise ValueError(f"fff_from_dense: leaf_width is {leaf_width}, expected 1 to d_ff, {d_ff}")
