"""Rows for 2:4 sparse weights: three ways of pruning, each with bf16 and int8 values.

Nothing is trained after pruning, so these rows show what pruning costs a model that was not made for it. Wanda and
SparseGPT see the calibration text; layers are pruned in order, and each sees what the pruned ones before it give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

import fastffn as ff

from .arrays import F32
from .calibration import Calibration
from .layers import FfnLayer, linear, numpy_hidden

if TYPE_CHECKING:
    from .variants import Variant

VALUES = ("bf16", "int8")
_PASSES = {"wanda": 1.0, "sparsegpt": 2.5}  # time of pruning while the model runs, in runs of the model
_NOTE = (
    "2:4 rows: half of the weights are zero, and nothing was trained afterwards; on a small model that costs much, and training"
    " with the masks (fastffn.torch.sparse24) is what wins it back. Wanda and SparseGPT chose on another text than the one"
    " that perplexity is taken of."
)


def pruned_layer(layer: FfnLayer, method: str, x: F32 | None = None) -> tuple[FfnLayer, F32 | None]:
    """The layer with 2:4 sparse weights, and what its w_down multiplies given x.

    x [tokens, d_model]: the layer's inputs, for the methods that need some.
    """
    seen = None if x is None else _calibration(x, method)
    if layer.w_gate is None:
        made = replace(layer, w_up=ff.prune24(layer.w_up, method, seen))
    else:
        # Rows are pruned one by one, so both may go together: what SparseGPT solves for the inputs, it solves once.
        both = ff.prune24(np.concatenate([layer.w_up, layer.w_gate]), method, seen)
        made = replace(layer, w_up=both[: layer.d_ff], w_gate=both[layer.d_ff :])
    hidden = None if x is None else numpy_hidden(made, x)
    seen = None if hidden is None else _calibration(hidden, method)
    return replace(made, w_down=ff.prune24(layer.w_down, method, seen)), hidden


def _calibration(x: F32, method: str) -> Any:
    seen = ff.sparse24.Calibration24(x.shape[-1], gram=method == "sparsegpt")
    seen.add(x)
    return seen


class _Layers:
    """The pruned layers of the model at hand, in every kind of packed form; f32 is not kept."""

    def __init__(self, method: str, pack: Callable[[FfnLayer, str], Any]) -> None:
        self._method = method
        self._pack = pack
        self._of: Calibration | None = None
        self._packed: dict[tuple[int, str], Any] = {}

    def calibrate(self, calibration: Calibration, step: Callable[[], None]) -> None:
        """Prunes all layers; the second row that asks finds them done."""
        if self._of is calibration:
            return
        self._of, self._packed = calibration, {}

        def convert(index: int, layer: FfnLayer, x: F32) -> F32:
            made, hidden = pruned_layer(layer, self._method, x.reshape(-1, x.shape[-1]))
            assert hidden is not None
            for values in VALUES:
                self._packed[index, values] = self._pack(made, values)
            return linear(hidden, made.w_down, made.b_down).reshape(x.shape)

        calibration.walk(convert, step)

    def packed(self, layer: FfnLayer, values: str) -> Any:
        """What the layer became."""
        assert layer.index is not None
        return self._packed[layer.index, values]


def sparse24_variants(pack: Callable[[FfnLayer, str], Any], row: Variant) -> list[Variant]:
    """Six rows. `pack(layer, values)` packs a pruned layer; `row` says how packed layers run."""
    stores = {method: _Layers(method, pack) for method in ("wanda", "sparsegpt")}

    def magnitude(values: str) -> Variant:
        def packed(layer: FfnLayer) -> Any:
            return pack(pruned_layer(layer, "magnitude")[0], values)

        return replace(row, name=f"2:4 {values} magnitude", pack=packed, note=_NOTE)

    def calibrated(method: str, values: str) -> Variant:
        def packed(layer: FfnLayer) -> Any:
            return stores[method].packed(layer, values)

        return replace(
            row,
            name=f"2:4 {values} {method}",
            pack=packed,
            calibrate=stores[method].calibrate,
            calibration_passes=_PASSES[method] if values == VALUES[0] else 0.0,  # the second row finds it done
            like=f"2:4 {values} magnitude",
            note=_NOTE,
        )

    return [one for values in VALUES for one in (magnitude(values), *(calibrated(name, values) for name in stores))]
