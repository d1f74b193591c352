"""Weights for the 2:4 tests."""

from __future__ import annotations

import itertools

import numpy as np

PAIRS = list(itertools.combinations(range(4), 2))


def formula(rows: int, columns: int) -> np.ndarray:
    """2:4 sparse whole numbers from -7 to 7 [rows, columns] in f32, the same everywhere: all six patterns, and groups in which
    one or both of the two are zero."""
    w = np.zeros((rows, columns), np.float32)
    for row in range(rows):
        for group in range(-(-columns // 4)):
            for place in PAIRS[(7 * row + 5 * group + group // 6) % 6]:
                column = 4 * group + place
                if column < columns:
                    w[row, column] = (13 * row + 5 * column + row * column) % 15 - 7
    return w


def random24(rows: int, columns: int, seed: int = 0, holes: float = 0.2) -> np.ndarray:
    """2:4 sparse normal values with some of the kept ones zero, and some zeros negative."""
    rng = np.random.default_rng([seed, rows, columns])
    w = np.zeros((rows, -(-columns // 4), 4), np.float32)
    order = rng.permuted(np.broadcast_to(np.arange(4), w.shape), axis=-1)[..., :2]
    values = rng.standard_normal(order.shape).astype(np.float32)
    values[rng.random(order.shape) < holes] = 0
    np.put_along_axis(w, order, values, axis=-1)
    w[(w == 0) & (rng.random(w.shape) < 0.1)] = -0.0
    return np.ascontiguousarray(w.reshape(rows, -1)[:, :columns])


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays have one shape, one dtype and equal bits, but that -0.0 may have become 0.0."""
    a, b = np.asarray(a), np.asarray(b)
    plus = np.zeros((), a.dtype)
    return a.shape == b.shape and a.dtype == b.dtype and (a + plus).tobytes() == (b + plus).tobytes()
