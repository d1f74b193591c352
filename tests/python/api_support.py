"""Arrays of every kind, and the float64 formulas that the API tests compare with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Error of y against float64, as a share of its largest value: the dtype's own rounding, with room for small sums.
TOLERANCE = {"f32": 2e-6, "f16": 2e-3, "bf16": 1.6e-2, "int8": 3e-2, "sparse24": 1.6e-2, "ternary": 3e-2, "int4": 3e-2}


def held(w: np.ndarray, format: str) -> np.ndarray:
    """What stands for w in the comparison: w, or for formats of a few bits the weights that were kept of it."""
    import fastffn as ff

    return np.asarray(ff.unpack(ff.pack(w, format))) if format in ("ternary", "int4") else w


def weights(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """A [rows, columns] f32 matrix whose products with unit vectors have unit size; 2:4, so that every format can hold it."""
    generator = np.random.default_rng(seed)
    return two_of_four((generator.standard_normal((rows, columns)) / math.sqrt(columns / 2)).astype(np.float32))


def two_of_four(w: np.ndarray, seed: int = 0) -> np.ndarray:
    """The weights with two of every four consecutive ones set to zero, at random places."""
    groups = np.random.default_rng(seed).random((*w.shape[:-1], -(-w.shape[-1] // 4), 4))
    keep = groups >= np.sort(groups, axis=-1)[..., 2:3]
    return np.where(keep.reshape(*w.shape[:-1], -1)[..., : w.shape[-1]], w, np.zeros((), w.dtype))


def tokens(*shape: int, seed: int = 1) -> np.ndarray:
    """An f32 array of standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gelu(x: np.ndarray) -> np.ndarray:
    """x · Φ(x)."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def silu(x: np.ndarray) -> np.ndarray:
    """x · sigmoid(x)."""
    return x / (1 + np.exp(-x))


def dense(x: Any, w_up: Any, w_down: Any, activation: Any = gelu) -> np.ndarray:
    """The dense FFN in float64."""
    hidden = activation(np.asarray(x, np.float64) @ np.asarray(w_up, np.float64).T)
    return hidden @ np.asarray(w_down, np.float64).T


def assert_close(y: Any, expected: np.ndarray, tolerance: float) -> None:
    """Compares any array with a float64 one, relative to the largest expected value."""
    actual = to_numpy(y).astype(np.float64)
    assert actual.shape == expected.shape
    error = np.abs(actual - expected).max(initial=0.0)
    assert error <= tolerance * max(np.abs(expected).max(initial=0.0), 1e-30), f"error {error}"


def to_numpy(y: Any) -> np.ndarray:
    """A NumPy array of y's values, whatever kind y has."""
    if isinstance(y, np.ndarray):
        return y
    if type(y).__module__.startswith("torch"):
        return y.detach().float().numpy() if y.is_floating_point() else y.numpy()
    if isinstance(y, Exporter):
        return y.array
    return np.asarray(y)


class Namespace:
    """The part of the array API standard that makes an array from DLPack."""

    @staticmethod
    def from_dlpack(array: Any) -> Exporter:
        return Exporter(np.from_dlpack(array))


class Exporter:
    """An array that only speaks DLPack, as jax's do: the buffer protocol and NumPy's attributes are absent."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.calls: list[dict[str, Any]] = []

    def __dlpack__(self, **keywords: Any) -> Any:
        self.calls.append(keywords)
        return self.array.__dlpack__(**keywords)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __array_namespace__(self) -> type[Namespace]:
        return Namespace


class OldExporter:
    """DLPack before version 1: no keywords, an unversioned capsule, and no array namespace."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack__(self, stream: None = None) -> Any:
        return self.array.__dlpack__()


class GpuExporter:
    """Says that it lives on a GPU; asking it for a capsule would be a mistake."""

    def __init__(self, device: tuple[int, int]) -> None:
        self.device = device

    def __dlpack__(self, **keywords: Any) -> Any:
        raise AssertionError("the device was not looked at first")

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device
