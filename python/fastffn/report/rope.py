"""Rotary positions (Su et al. 2021, arXiv:2104.09864) and the ways in which models stretch them.

Pair i of a head of `dims` turning dimensions turns by ``position / base^(2i/dims)``; a scaling slows some pairs so that
a longer text turns no further than the texts of training did.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .arrays import F32, F64
from .errors import FileFormatError, UnsupportedModelError

# "dynamic" stretches only beyond the length of training, which this report never reaches.
_PLAIN = ("default", "dynamic", "none")


@dataclass(frozen=True)
class Rope:
    """`dims`: leading dimensions of a head that turn; `interleaved`: pairs are neighbours, else half of `dims` apart.

    `scaling`: a Hugging Face ``rope_scaling`` with its ``rope_type``; `divisors`: one per pair, where a file lists them.
    """

    base: float
    dims: int
    interleaved: bool = False
    scaling: dict[str, Any] = field(default_factory=dict)
    divisors: F64 | None = None

    def __post_init__(self) -> None:
        try:
            self.frequencies()
        except FileFormatError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise UnsupportedModelError(f"rope scaling {self.scaling} is incomplete: {error!r}") from error

    def frequencies(self) -> tuple[F64, float]:
        """Radians per position of each pair, and the factor of cosine and sine."""
        plain: F64 = self.base ** -(np.arange(0, self.dims, 2, dtype=np.float64) / self.dims)
        if self.divisors is not None:
            if self.divisors.shape != plain.shape:
                raise ValueError(f"{self.divisors.size} factors for {plain.size} pairs")
            plain = plain / self.divisors
        kind = self.scaling.get("rope_type", self.scaling.get("type", "default"))
        if kind in _PLAIN:
            return plain, float(self.scaling.get("attention_factor") or 1.0)
        if kind == "linear":
            return plain / float(self.scaling["factor"]), 1.0
        if kind == "llama3":
            return self._llama3(plain), 1.0
        if kind == "yarn":
            return self._yarn(plain)
        if kind in ("longrope", "su"):
            return self._longrope(plain)
        raise UnsupportedModelError(f"rope scaling {kind!r} is not supported")

    def table(self, length: int) -> tuple[F32, F32]:
        """Cosines and sines [length, dims / 2]."""
        frequencies, factor = self.frequencies()
        angles = np.arange(length, dtype=np.float64)[:, None] * frequencies
        return (factor * np.cos(angles)).astype(np.float32), (factor * np.sin(angles)).astype(np.float32)

    def rotate(self, x: F32, table: tuple[F32, F32]) -> F32:
        """x [heads, length, head_dim] turned; dimensions from `dims` on stay as they are."""
        cos, sin = table
        half = cos.shape[1]
        out: F32 = x.copy()
        if self.interleaved:
            a, b = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
            out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2] = a * cos - b * sin, b * cos + a * sin
        else:
            a, b = x[..., :half], x[..., half : 2 * half]
            out[..., :half], out[..., half : 2 * half] = a * cos - b * sin, b * cos + a * sin
        return out

    def _llama3(self, plain: F64) -> F64:
        """Llama 3.1: long wavelengths are slowed by `factor`, short ones kept, those between blended."""
        factor, original = float(self.scaling["factor"]), float(self.scaling["original_max_position_embeddings"])
        low, high = float(self.scaling["low_freq_factor"]), float(self.scaling["high_freq_factor"])
        turns = original * plain / (2 * math.pi)
        blend = np.clip((turns - low) / (high - low), 0, 1)
        return np.asarray(plain * (blend + (1 - blend) / factor), np.float64)

    def _yarn(self, plain: F64) -> tuple[F64, float]:
        """Peng et al. 2023 (arXiv:2309.00071): a ramp over the pairs, and warmer attention."""
        if "mscale" in self.scaling or "mscale_all_dim" in self.scaling:
            raise UnsupportedModelError("rope scaling 'yarn' with mscale is not supported")
        factor, original = float(self.scaling["factor"]), float(self.scaling["original_max_position_embeddings"])

        def pair_that_turns(times: float) -> float:
            return self.dims * math.log(original / (times * 2 * math.pi)) / (2 * math.log(self.base))

        low = pair_that_turns(float(self.scaling.get("beta_fast") or 32))
        high = pair_that_turns(float(self.scaling.get("beta_slow") or 1))
        if self.scaling.get("truncate", True):
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.dims - 1)
        ramp = np.clip((np.arange(self.dims // 2) - low) / max(high - low, 0.001), 0, 1)
        given = self.scaling.get("attention_factor")
        return plain * (1 - ramp) + plain / factor * ramp, float(given or 0.1 * math.log(factor) + 1)

    def _longrope(self, plain: F64) -> tuple[F64, float]:
        """Ding et al. 2024 (arXiv:2402.13753), within the length of training: a divisor per pair."""
        original, longest = (float(self.scaling[name]) for name in ("original", "longest"))
        divisors = np.asarray(self.scaling["short_factor"], np.float64)
        if divisors.shape != plain.shape:
            raise ValueError(f"{divisors.size} factors for {plain.size} pairs")
        stretch = max(longest / original, 1.0)
        given = self.scaling.get("attention_factor")
        return plain / divisors, float(given or math.sqrt(1 + math.log(stretch) / math.log(original)))
