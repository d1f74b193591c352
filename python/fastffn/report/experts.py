"""Rows of dense layers cut into experts after training (fastffn.convert), at three quarters of the weights per token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..convert import MoeLayer, PackedMoe, cmoe, moefication
from .arrays import F32
from .calibration import Calibration
from .errors import ReportError
from .layers import FfnLayer
from .variants import Variant, format_variant

FORMAT = "bf16"
_NOTE = (
    "cmoe and moefication: the calibration text alone chose the experts, and no weight was trained. The papers"
    " fine-tune afterwards, or begin with ReLU, under which most neurons are 0; with SiLU and GELU skipping a quarter of"
    " them costs this much."
)


def _cmoe(x: F32, layer: FfnLayer) -> MoeLayer:
    experts = _divisor(layer.d_ff, 8)
    shared = 3 * experts // 8
    # With fewer than 8 parts: all but a quarter of them, if that can be.
    picks = max(1, experts - shared - max(experts // 4, 1))
    return cmoe(x, **_weights(layer), experts=experts, shared=shared, picks=picks)


def _moefication(x: F32, layer: FfnLayer) -> MoeLayer:
    experts = _divisor(layer.d_ff, 16)
    return moefication(x, **_weights(layer), experts=experts, picks=max(1, 3 * experts // 4))


_METHODS: dict[str, Callable[[F32, FfnLayer], MoeLayer]] = {"cmoe 75%": _cmoe, "moefication 75%": _moefication}


@dataclass
class _Conversions:
    """Every method's split of every layer, from one walk over the calibration text. The weights are not kept."""

    seen: Calibration | None = None
    splits: dict[tuple[str, int], MoeLayer] = field(default_factory=dict)

    def make(self, calibration: Calibration, step: Callable[[], None]) -> None:
        if calibration is self.seen:
            return
        self.splits.clear()
        # The original, but for rounding in f32, and faster than NumPy has it.
        original = format_variant("f32").as_ffn()

        def convert(index: int, layer: FfnLayer, x: F32) -> F32:
            rows = x.reshape(-1, x.shape[-1])
            for name, method in _METHODS.items():
                split = method(rows, layer)
                self.splits[name, index] = replace(split, dense=replace(split.dense, **_NOTHING))
            return original(index, layer, x)

        calibration.walk(convert, step)
        self.seen = calibration

    def split(self, name: str, layer: FfnLayer) -> MoeLayer:
        found = None if layer.index is None else self.splits.get((name, layer.index))
        if found is None:
            raise ReportError(f"{name}: layer {layer.index} was not part of the calibration")
        weights = {key: value for key, value in _weights(layer).items() if key != "activation"}
        return replace(found, dense=replace(found.dense, **weights))


def expert_variants() -> list[Variant]:
    """CMoE and MoEfication, bf16; f32 in and out, and the router's work in the time."""
    conversions = _Conversions()

    def variant(name: str, passes: float) -> Variant:
        def run(packed: tuple[PackedMoe, float], prepared: tuple[F32, F32]) -> Any:
            x, out = prepared
            return packed[0](x, out=out)

        def pack(layer: FfnLayer) -> tuple[PackedMoe, float]:
            split = conversions.split(name, layer)
            return split.pack(FORMAT), split.active_fraction

        return Variant(
            name=name,
            family="fastffn",
            pack=pack,
            prepare=lambda x, layer: (x, np.empty((x.shape[0], layer.w_down.shape[0]), np.float32)),
            run=run,
            bytes=lambda packed: packed[0].nbytes,
            result=lambda output: np.asarray(output, np.float32),
            calibrate=conversions.make,
            calibration_passes=passes,
            active=lambda packed: packed[1],
            note=_NOTE,
        )

    # The first one walks for both, and converts for both.
    return [variant(name, 2.0 if index == 0 else 0.0) for index, name in enumerate(_METHODS)]


_NOTHING: dict[str, Any] = {
    "w_up": np.empty((0, 0), np.float32),
    "w_down": np.empty((0, 0), np.float32),
    "w_gate": None,
}


def _weights(layer: FfnLayer) -> dict[str, Any]:
    names = ("w_up", "w_down", "w_gate", "b_up", "b_down", "b_gate", "activation")
    return {name: getattr(layer, name) for name in names}


def _divisor(d_ff: int, most: int) -> int:
    """The largest power of two up to `most` that divides d_ff."""
    while d_ff % most:
        most //= 2
    return most
