"""How far outputs are from float64, per layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .arrays import F32
from .layers import FfnLayer, float64_ffn
from .variants import Variant


@dataclass(frozen=True)
class LayerError:
    """One layer: error's RMS over the output's RMS, and the largest error over the output's RMS."""

    layer: int
    rms: float
    largest: float


@dataclass(frozen=True)
class OutputError:
    """All layers of one variant. Each counts by its own scale, so that one with huge outputs does not hide the rest."""

    layers: tuple[LayerError, ...]

    @property
    def rms(self) -> float:
        """Root mean square over the layers of their relative RMS errors."""
        return float(np.sqrt(np.mean([layer.rms**2 for layer in self.layers])))

    @property
    def worst_rms(self) -> float:
        """The layer with the largest relative RMS error."""
        return max(layer.rms for layer in self.layers)

    @property
    def largest(self) -> float:
        """The largest single error, in units of its layer's output RMS."""
        return max(layer.largest for layer in self.layers)


def layer_errors(index: int, layer: FfnLayer, x: F32, variants: Sequence[Variant]) -> list[LayerError]:
    """Each variant's error on rows x [tokens, d_model] of one layer."""
    expected = float64_ffn(layer, x)
    scale = float(np.sqrt(np.mean(np.square(expected)))) or 1.0
    out = []
    for variant in variants:
        error = variant.apply(variant.pack(layer), x, layer).astype(np.float64) - expected
        rms = float(np.sqrt(np.mean(np.square(error)))) / scale
        out.append(LayerError(index, rms, float(np.max(np.abs(error))) / scale))
    return out
