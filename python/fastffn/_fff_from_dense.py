"""A dense feed-forward layer → a tree of leaves that hold its neurons: where training of a tree may begin.

No tree has been published that replaces a trained dense layer as it is. This one is honest about being a start: routing is
fitted to where the layer's neurons are active on calibration inputs, each leaf gets the neurons that matter most there, and
what the others did on average goes into the leaf's bias. What it loses depends on how clustered the activations are: with
sparse (ReLU) activations it may be little, with GELU it is usually much. Measure it, and train on from it.
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
    b_up: Any = None,
    b_down: Any = None,
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

    Args:
        x: calibration inputs [..., d_model], the more the better: those the layer truly sees; 2^depth tokens at least.
        w_up, w_down, b_up, b_down: [d_ff, d_model], [d_out, d_ff], [d_ff], [d_out], as in :func:`fastffn.ffn`. A gated
            layer has no counterpart among trees.
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
    from fastffn.report.layers import activate

    rows, up, down, bias_up, bias_down = _checked(x, w_up, w_down, b_up, b_down, depth, leaf_width)
    hidden = activate(activation, rows @ up.T + bias_up)
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
        here = hidden[group] if len(group) else hidden
        order = np.argsort(-np.square(here * strength, dtype=np.float64).sum(axis=0), kind="stable")
        kept = np.sort(order[:leaf_width])
        leaf_up[leaf], leaf_b_up[leaf] = up[kept], bias_up[kept]
        leaf_down[leaf], leaf_b_down[leaf] = _outputs(here, kept, down, bias_down, refit)
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
    """argmin ‖a·w - b‖² + λ‖w‖², λ a hundredth of the mean eigenvalue, and more where rows are few."""
    gram = a.T @ a
    few = 1 + 10 * a.shape[1] / max(a.shape[0], 1)
    scale = 0.01 * few * float(np.trace(gram)) / max(a.shape[1], 1) + 1e-30
    solved: F64 = np.linalg.solve(gram + scale * np.eye(a.shape[1]), a.T @ b)
    return solved


def _outputs(hidden: F32, kept: I64, down: F32, bias: F32, refit: bool) -> tuple[F32, F32]:
    """A leaf's w_down and b_down."""
    others = np.ones(down.shape[1], bool)
    others[kept] = False
    lost = hidden[:, others].astype(np.float64) @ down[:, others].T.astype(np.float64)
    mean = lost.mean(axis=0)
    weights = down[:, kept].astype(np.float64)
    if refit and others.any():
        used = hidden[:, kept].astype(np.float64)
        centre = used.mean(axis=0)
        moved = _ridge(used - centre, lost - mean)
        weights = weights + moved.T
        mean = mean - centre @ moved
    return weights.astype(np.float32), (bias + mean).astype(np.float32)


def _checked(
    x: Any, w_up: Any, w_down: Any, b_up: Any, b_down: Any, depth: int, leaf_width: int
) -> tuple[F32, F32, F32, F32, F32]:
    """All as f32 NumPy: rows [tokens, d_model], weights, and biases that are zero where there are none."""
    from fastffn._fff_load import _f32

    operation = "fff_from_dense"
    up, down, inputs = _f32(w_up), _f32(w_down), _f32(x)
    if up.ndim != 2 or down.ndim != 2 or down.shape[1] != up.shape[0]:
        raise ValueError(
            f"{operation}: w_up and w_down have shapes {up.shape} and {down.shape}, expected (d_ff, d_model) and (d_out, d_ff)"
        )
    d_ff, d_model = up.shape
    if inputs.ndim < 1 or inputs.shape[-1] != d_model:
        raise ValueError(f"{operation}: x has shape {inputs.shape}, expected (..., {d_model})")
    rows = inputs.reshape(-1, d_model)
    if not 0 <= depth <= 20 or len(rows) < 1 << depth:
        raise ValueError(
            f"{operation}: depth is {depth} and x has {len(rows)} tokens, expected 2^depth tokens at least"
        )
    if not 1 <= leaf_width <= d_ff:
        raise ValueError(f"{operation}: leaf_width is {leaf_width}, expected 1 to d_ff, {d_ff}")
    if not np.isfinite(rows).all():
        raise ValueError(f"{operation}: x has values that are not finite")
    given = []
    for name, bias, size in (("b_up", b_up, d_ff), ("b_down", b_down, down.shape[0])):
        array = np.zeros(size, np.float32) if bias is None else _f32(bias)
        if array.shape != (size,):
            raise ValueError(f"{operation}: {name} has shape {array.shape}, expected ({size},)")
        given.append(array)
    return rows, up, down, given[0], given[1]
