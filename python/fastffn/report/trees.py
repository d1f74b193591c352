"""The row of a fast feedforward tree as wide as the dense layer: 16 leaves, of which a token uses one.

Its time is that of any tree of this shape. Its quality is that of a beginning: trees are trained, and this one was cut from
the dense layer by the calibration text alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastffn as ff

from .arrays import F32
from .calibration import Calibration
from .errors import ReportError
from .layers import FfnLayer, numpy_ffn
from .measure import rows_for
from .variants import Variant

NAME = "fff f32"
_DEPTH = 4
_TOKENS = 2048  # of the calibration text, per layer: 128 per leaf
_PASSES = 4.0
_NOTE = (
    f"{NAME}: a fast feedforward tree of 16 leaves that together have as many neurons as the dense layer; a token runs one"
    " leaf. Trees need training from the start, or for long: this one was only cut from the dense layer"
    " (fastffn.fff_from_dense). Its time is what a trained one takes; its quality says how far the cut alone is from that."
)


class _Trees:
    """The tree of every layer of the model at hand."""

    def __init__(self) -> None:
        self._of: Calibration | None = None
        self._packed: dict[int, ff.PackedFff] = {}

    def make(self, calibration: Calibration, step: Callable[[], None]) -> None:
        """One walk through the original model."""
        if self._of is calibration:
            return
        self._of, self._packed = calibration, {}

        def convert(index: int, layer: FfnLayer, x: F32) -> F32:
            self._packed[index] = ff.pack_fff(tree_of(layer, x.reshape(-1, x.shape[-1])))
            return numpy_ffn(layer, x)

        calibration.walk(convert, step)

    def packed(self, layer: FfnLayer) -> tuple[ff.PackedFff, float]:
        """A layer's tree, and the part of the dense layer's weights that it uses per token."""
        if layer.index is None or layer.index not in self._packed:
            raise ReportError(f"{NAME}: layer {layer.index} was not part of the calibration")
        tree = self._packed[layer.index]
        width = ff.info(tree.options["w_up"]).out_features
        used = width * (layer.d_model + layer.w_down.shape[0]) + ff.tree_info(tree.tree).depth * layer.d_model
        return tree, used / layer.parameters


def tree_of(layer: FfnLayer, x: F32) -> ff.FffWeights:
    """The layer cut into leaves: 16, or fewer where there are few neurons or tokens."""
    depth = _DEPTH
    while depth and (layer.d_ff % (1 << depth) or x.shape[0] < 1 << depth):
        depth -= 1
    return ff.fff_from_dense(
        rows_for(x, min(_TOKENS, x.shape[0])), layer.w_up, layer.w_down, layer.w_gate, layer.b_up, layer.b_down,
        layer.b_gate, depth=depth, leaf_width=layer.d_ff >> depth, activation=layer.activation,
    )  # fmt: skip


def tree_variants() -> list[Variant]:
    """One row; f32 in and out, and the decisions in the time."""
    trees = _Trees()

    def run(packed: tuple[ff.PackedFff, float], prepared: tuple[F32, F32]) -> Any:
        x, out = prepared
        return packed[0](x, out=out)

    return [
        Variant(
            name=NAME,
            family="fastffn",
            pack=trees.packed,
            prepare=lambda x, layer: (x, np.empty((x.shape[0], layer.w_down.shape[0]), np.float32)),
            run=run,
            bytes=lambda packed: packed[0].nbytes,
            result=lambda output: np.asarray(output, np.float32),
            calibrate=trees.make,
            calibration_passes=_PASSES,
            active=lambda packed: packed[1],
            note=_NOTE,
        )
    ]
