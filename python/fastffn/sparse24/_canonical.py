"""The canonical form: the two stored weights of every group, and 4 bits that say where they were.

It is what the sparse tensor cores of GPUs define (mma.sp, PTX ISA 9.7.14.5): a nibble idx0 | idx1 << 2 with
idx0 < idx1 for every group, so one of 4, 8, 9, C, D, E for the places 01, 02, 12, 03, 13, 23. A byte of metadata holds two
groups, the first in the low nibble.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._arrays import Bits, like, read, read_integers
from ._groups import CANONICAL_PADS, check_groups, gather, pairs_of, scatter

Pairs = npt.NDArray[np.uint8]
_LEGAL = (0x4, 0x8, 0x9, 0xC, 0xD, 0xE)


def compress24(w: Any) -> tuple[Any, Any]:
    """Weights in the canonical form.

    Args:
        w: 2:4 sparse weights [out_features, in_features]; f32, f64, f16, bf16, int8 or fp8.

    Returns:
        (values, metadata): the stored weights [out_features, 2·⌈in_features/4⌉] in w's dtype, bit for bit, and
        [out_features, ⌈in_features/8⌉] uint8. A group with fewer than two nonzeros stores zeros too: the nibble is then E, C
        (only its first weight is nonzero) or D (only its second is). A nibble without a group is E.

    Raises:
        ValueError: w is not 2:4 sparse; the message names the first group.
    """
    source = read("compress24", "w", w, narrow=True, dims=(2,))
    check_groups("compress24", "w", source)
    pairs = pairs_of(source.nonzero(), CANONICAL_PADS)
    return source.from_bits(gather(source.bits(), pairs)), like(source, to_bytes(nibbles_of(pairs)))


def decompress24(values: Any, metadata: Any, in_features: int | None = None) -> Any:
    """The dense weights of :func:`compress24`.

    Args:
        values: [out_features, 2·groups].
        metadata: uint8 [out_features, ⌈groups/2⌉].
        in_features: columns of the result, 4·groups unless given; needed where that was no multiple of four.

    Raises:
        ValueError: shapes that do not fit each other; a nibble that names no pair, such as one with two equal indices; a
            nonzero weight beyond in_features.
    """
    source = read("decompress24", "values", values, narrow=True, dims=(2,))
    packed = read_integers("decompress24", "metadata", metadata, ("uint8",), 2)
    rows, stored = source.shape
    groups = stored // 2
    if stored % 2 or packed.shape != (rows, -(-groups // 2)):
        raise ValueError(
            f"decompress24: metadata has shape {packed.shape}, expected {(rows, -(-groups // 2))} for values of shape"
            f" {source.shape}, two per group and an even number"
        )
    columns = 4 * groups if in_features is None else int(in_features)
    if -(-columns // 4) != groups:
        raise ValueError(f"decompress24: in_features is {columns}, expected {4 * groups - 3} to {4 * groups}")
    nibbles = np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(rows, -1)[:, :groups]
    pairs = pairs_of_nibbles("decompress24", nibbles)
    bits = source.bits()
    dense = scatter(bits, pairs, 4 * groups)
    if dense[:, columns:].any():
        row = int(np.argmax(dense[:, columns:].any(axis=1)))
        raise ValueError(f"decompress24: row {row} has a nonzero weight beyond in_features {columns}")
    return source.from_bits(np.ascontiguousarray(dense[:, :columns]))


def nibbles_of(pairs: Pairs) -> npt.NDArray[np.uint8]:
    """[..., 2] → [...]: idx0 | idx1 << 2."""
    nibbles: npt.NDArray[np.uint8] = pairs[..., 0] | (pairs[..., 1] << np.uint8(2))
    return nibbles


def pairs_of_nibbles(operation: str, nibbles: Bits) -> Pairs:
    """[R, G] → [R, G, 2], refusing those that name no pair idx0 < idx1."""
    known = np.zeros(16, np.bool_)
    known[list(_LEGAL)] = True
    if not known[nibbles].all():
        row, group = (int(index) for index in np.argwhere(~known[nibbles])[0])
        nibble = int(nibbles[row, group])
        raise ValueError(
            f"{operation}: metadata of row {row}, group {group} is {nibble:#x} (indices {nibble & 3} and {nibble >> 2}),"
            " expected one of 0x4, 0x8, 0x9, 0xc, 0xd, 0xe: two indices in ascending order"
        )
    return np.stack([nibbles & 3, nibbles >> 2], axis=-1).astype(np.uint8)


def to_bytes(nibbles: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Two nibbles per byte, the first in the low half: [R, G] → [R, ⌈G/2⌉]."""
    if nibbles.shape[1] % 2:
        nibbles = np.pad(nibbles, [(0, 0), (0, 1)], constant_values=0xE)
    packed: npt.NDArray[np.uint8] = nibbles[:, 0::2] | (nibbles[:, 1::2] << np.uint8(4))
    return packed
