"""CMoE: shared and routed experts from activation rates, and a router made of neurons instead of learned.

Pei, Zou, Zhen, Yu, Liu, Pan, Yuan and Yu 2025, "CMoE: Converting Mixture-of-Experts from Dense to Accelerate LLM
Inference" (arXiv:2502.04416).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ._assignment import balanced_assignment
from ._dense import DenseLayer, calibration_rows, dense_layer, hidden_rows, normalized
from ._layer import AnalyticRouter, MoeLayer, check_split

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_ROWS = 1024  # rows of marks that are held as a matrix at a time


def cmoe(
    x: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    b_gate: Any = None,
    *,
    activation: str,
    experts: int = 8,
    shared: int = 3,
    picks: int = 3,
    top: int = 10,
) -> MoeLayer:
    """Splits a dense layer into shared and routed experts, without training (CMoE, arXiv:2502.04416).

    A neuron is marked for a token when it is among the `top` most active ones, with inputs and weights of unit length.
    The neurons marked most often make the shared experts, which every token uses. The others gather around as many
    most-marked neurons as there are routed experts, those that are marked together in one expert, all of one size
    (exact balanced assignment). Each routed expert's most typical neuron is its logit: the router needs no training.

    Args:
        x: [..., d_model], inputs that this layer sees on real data; some thousands of rows.
        w_up, w_down, w_gate, b_up, b_down, b_gate, activation: the layer, as :func:`fastffn.ffn` takes it, unpacked.
        experts: parts of equal width, shared ones included; divides d_ff.
        shared: how many of them every token uses.
        picks: how many of the rest a token uses.
        top: neurons marked per token.

    Returns:
        The layer as a mixture of experts. With picks = experts - shared it computes what the dense layer does. Fewer
        picks lose quality, in layers with SiLU or GELU more than with ReLU: fine-tune, or look at the loss first.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, experts that do not divide d_ff, or counts out of range.
        TypeError: an argument is no array.
    """
    layer = dense_layer("cmoe", w_up, w_down, w_gate, b_up, b_down, b_gate, activation)
    rows = calibration_rows("cmoe", x, layer)
    check_split("cmoe", layer, experts, shared, picks)
    if not 1 <= top <= layer.d_ff:
        raise ValueError(f"cmoe: top is {top}, expected 1 to d_ff = {layer.d_ff}")

    unit, unit_rows = _of_unit_length(layer, rows)
    marked = _marks(unit, unit_rows, top)
    rates = np.bincount(marked.ravel(), minlength=layer.d_ff + 1)[: layer.d_ff]
    # Most marked first; among equals the lower neuron, so that the result does not hang on the sort.
    order = np.argsort(-rates, kind="stable")
    width, routed = layer.d_ff // experts, experts - shared
    rest = order[shared * width :]
    seeds = rest[:routed]
    together = np.zeros((layer.d_ff, routed))
    for marks in _matrices(marked, layer.d_ff):
        together += marks.T @ marks[:, seeds]
    # L1 distance of two columns of marks: what is marked in one of them only.
    distance = rates[rest][:, None] + rates[seeds] - 2 * together[rest]
    labels = balanced_assignment(distance)
    members = np.stack([np.sort(rest[labels == expert]) for expert in range(routed)])
    typical = _most_typical(members, marked, rates, layer.d_ff)
    w_up, b_up = _split_bias(unit.w_up[typical], layer)
    w_gate, b_gate = (None, None) if unit.w_gate is None else _split_bias(unit.w_gate[typical], layer)
    router = AnalyticRouter(w_up, w_gate, b_up, b_gate, layer.activation, np.zeros(routed, np.float32), 0.0)
    return MoeLayer(layer, members, np.sort(order[: shared * width]), picks, router)


def _of_unit_length(layer: DenseLayer, x: F32) -> tuple[DenseLayer, F32]:
    """Inputs and rows of the input matrices of unit length: how much a neuron fires, whatever its scale.

    Biases count as weights of one more input, which is always 1.
    """

    def unit(w: F32, bias: F32 | None) -> F32:
        if _has_bias(layer):
            column = np.zeros(len(w), np.float32) if bias is None else bias
            w = np.column_stack([w, column])
        return normalized(w)

    if _has_bias(layer):
        x = np.column_stack([x, np.ones(len(x), np.float32)])
    gate = None if layer.w_gate is None else unit(layer.w_gate, layer.b_gate)
    up = unit(layer.w_up, layer.b_up)
    return DenseLayer(up, layer.w_down, gate, None, None, None, layer.activation), normalized(x)


def _has_bias(layer: DenseLayer) -> bool:
    return layer.b_up is not None or layer.b_gate is not None


def _split_bias(rows: F32, layer: DenseLayer) -> tuple[F32, F32 | None]:
    """Undoes what `_of_unit_length` did with biases."""
    return (rows[:, :-1].copy(), rows[:, -1].copy()) if _has_bias(layer) else (rows, None)


def _marks(layer: DenseLayer, x: F32, top: int) -> I64:
    """The `top` neurons with the largest |activation| of each row: [rows, top].

    A neuron at 0, as ReLU has many, is not active: d_ff stands in its place.
    """
    found = []
    for hidden in hidden_rows(layer, x):
        size = np.abs(hidden)
        chosen = np.argpartition(-size, top - 1, axis=1)[:, :top].astype(np.int64)
        found.append(np.where(np.take_along_axis(size, chosen, axis=1) > 0, chosen, layer.d_ff))
    return np.concatenate(found)


def _matrices(marked: I64, d_ff: int) -> Iterator[F32]:
    """The marks as 0 and 1, [some rows, d_ff] at a time."""
    for begin in range(0, len(marked), _ROWS):
        rows = marked[begin : begin + _ROWS]
        marks = np.zeros((len(rows), d_ff + 1), np.float32)
        np.put_along_axis(marks, rows, 1, axis=1)
        yield marks[:, :d_ff]


def _most_typical(members: I64, marked: I64, rates: I64, d_ff: int) -> I64:
    """Of each expert the member whose column of marks is nearest, in L1, to the mean of all members' columns."""
    experts, width = members.shape
    # For marks a in {0, 1} and means c: Σ |a - c| = Σ c + Σ a - 2 Σ a c. The first term is the same for all members.
    agreement = np.zeros((experts, width))
    for marks in _matrices(marked, d_ff):
        for expert in range(experts):
            columns = marks[:, members[expert]]
            agreement[expert] += columns.mean(axis=1) @ columns
    found: I64 = members[np.arange(experts), (rates[members] - 2 * agreement).argmin(axis=1)]
    return found
