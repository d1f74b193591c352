"""Groups of four: which weights stay, and whether at most two of them do.

A group is four consecutive weights of a row, along the dimension that a product sums over. The last group of a row
whose length is no multiple of four is filled with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastffn import _core

from ._arrays import Bits, Floats, Mask, Source, read


@dataclass(frozen=True)
class Sparsity24:
    """What :func:`check24` counted. `groups[n]`: groups with n nonzero weights, n = 0, 1, 2."""

    groups: tuple[int, int, int]
    weights: int

    @property
    def density(self) -> float:
        """Nonzero weights over all weights."""
        return (self.groups[1] + 2 * self.groups[2]) / self.weights


def check24(w: Any) -> Sparsity24:
    """Makes sure that no group of four consecutive weights of a row has more than two nonzeros.

    -0.0 counts as zero, NaN and infinity as nonzero. A last group of fewer than four follows the same rule.

    Args:
        w: [out_features, in_features] or a stack [count, out_features, in_features], NumPy or torch; f32, f64, f16,
            bf16, int8 or fp8.

    Returns:
        How many groups have 0, 1 and 2 nonzeros, and the density.

    Raises:
        ValueError: a group has more; the message names the first one and its weights.
    """
    source = read("check24", "w", w, narrow=True, dims=(2, 3))
    return check_groups("check24", "w", source)


def check_groups(operation: str, name: str, source: Source) -> Sparsity24:
    """:func:`check24` on behalf of another operation."""
    counts = nonzeros_per_group(source.nonzero())
    histogram = np.bincount(counts.reshape(-1), minlength=3)
    if histogram.size > 3:
        at = np.unravel_index(int(np.argmax(counts > 2)), counts.shape)
        begin = 4 * int(at[-1])
        row = tuple(int(index) for index in at[:-1])
        group: Bits = source.bits()[row][begin : begin + 4]
        values = read(operation, name, source.from_bits(group), narrow=True)
        shown = ", ".join(f"{value:g}" for value in _shown(values).tolist())
        where = f"row {row[-1]}" if counts.ndim == 2 else f"matrix {row[0]}, row {row[1]}"
        raise ValueError(
            f"{operation}: {name} is not 2:4 sparse: {where}, group {int(at[-1])} (columns {begin} to"
            f" {min(begin + 4, source.shape[-1]) - 1}) has {int(counts[at])} nonzeros, expected at most 2: {shown};"
            f" {int((counts > 2).sum())} of {counts.size} groups have more than 2. fastffn.prune24 makes weights 2:4 sparse"
        )
    return Sparsity24((int(histogram[0]), int(histogram[1]), int(histogram[2])), int(np.prod(source.shape)))


def _shown(source: Source) -> npt.NDArray[Any]:
    return source.bits() if source.dtype.startswith("float8") else source.floats()


def nonzeros_per_group(nonzero: Mask) -> npt.NDArray[np.uint8]:
    """[..., K] → [..., ⌈K/4⌉]."""
    counts: npt.NDArray[np.uint8] = in_groups(nonzero).sum(axis=-1, dtype=np.uint8)
    return counts


def in_groups(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[..., K] → [..., ⌈K/4⌉, 4], the last group filled up."""
    missing = -array.shape[-1] % 4
    if missing:
        array = np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])
    return np.ascontiguousarray(array).reshape(*array.shape[:-1], -1, 4)


def keep_two(scores: Floats) -> Mask:
    """The two highest of each group, of equal ones those with the lower index: scores [..., K] >= 0 → mask [..., K].

    Exactly two of a full group; of a last group of K % 4, two or as many as there are.
    """
    return mask_of(scores, False)


def mask_of(scores: Floats, transposable: bool) -> Mask:
    """The C++ search on |scores|."""
    mask: Mask = _core.mask24(scores, transposable).view(np.bool_)
    return mask


# Pattern of nonzeros (bit i: weight i of the group) → the pair of indices that holds them. Where fewer than two are
# nonzero, zeros fill up; which ones, every format decides for itself.
CANONICAL_PADS = {0b0000: (2, 3), 0b0001: (0, 3), 0b0010: (1, 3), 0b0100: (2, 3), 0b1000: (2, 3)}
TORCH_PADS = {**CANONICAL_PADS, 0b0001: (0, 2), 0b0010: (1, 2)}
BITMASK_PADS = {**CANONICAL_PADS, 0b0001: (0, 2), 0b0010: (1, 3)}


def pairs_of(nonzero: Mask, pads: dict[int, tuple[int, int]]) -> npt.NDArray[np.uint8]:
    """Indices of the two weights that every group stores: mask [R, K] → [R, ⌈K/4⌉, 2], the lower first."""
    table = np.zeros((16, 2), np.uint8)
    for pattern in range(16):
        places = tuple(index for index in range(4) if pattern >> index & 1)
        if len(places) <= 2:
            table[pattern] = places if len(places) == 2 else pads[pattern]
    patterns = in_groups(nonzero).astype(np.uint8) @ np.array([1, 2, 4, 8], np.uint8)
    pairs: npt.NDArray[np.uint8] = table[patterns]
    return pairs


def gather(bits: Bits, pairs: npt.NDArray[np.uint8]) -> Bits:
    """The stored weights: bits [R, K], pairs [R, G, 2] → [R, 2G]."""
    picked: Bits = np.take_along_axis(in_groups(bits), pairs.astype(np.intp), axis=-1)
    return picked.reshape(bits.shape[0], -1)


def scatter(values: Bits, pairs: npt.NDArray[np.uint8], columns: int) -> Bits:
    """The dense weights: values [R, 2G], pairs [R, G, 2] → [R, columns]."""
    rows, groups = pairs.shape[:2]
    dense = np.zeros((rows, groups, 4), values.dtype)
    np.put_along_axis(dense, pairs.astype(np.intp), values.reshape(rows, groups, 2), axis=-1)
    return np.ascontiguousarray(dense.reshape(rows, -1)[:, :columns])
