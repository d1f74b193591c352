"""`marlin-24` of compressed-tensors: 2:4 sparse int4 or int8 weights in the order that the Marlin-24 GPU kernel loads.

Three arrays per layer: `weight_packed` int32 [in/32, out·bits/2], `scale_packed` f16 [groups, out] and `meta` int16
[in/32, 2·out]. Described by compressed-tensors' Marlin24Compressor, which writes but cannot read it; what is written
here is the same bytes as its version 0.9.4 (tests/python/test_sparse24_marlin.py), and from_marlin24 reads them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._arrays import Floats, like, read, read_integers
from ._canonical import nibbles_of, pairs_of_nibbles
from ._cutlass import _interleaved, nibbles_of_words, words_of
from ._groups import TORCH_PADS, check_groups, gather, pairs_of, scatter

_TILE = 16
_GROUP = 128  # the only group size that the kernel knows
_INTERLEAVE = {4: [0, 2, 4, 6, 1, 3, 5, 7], 8: [0, 2, 1, 3]}


def to_marlin24(w: Any, scale: Any = None, *, bits: int = 4, group_size: int | None = None) -> dict[str, Any]:
    """Quantised 2:4 sparse weights as a `marlin-24` checkpoint holds them.

    Args:
        w: 2:4 sparse weights [out_features, in_features]; f32, f16 or bf16; out_features a multiple of 64, in_features of 32.
        scale: f32 or f16 [out_features, groups], rounded to f16; where it is not given, max|w| / (2^(bits-1) - 1) of every group.
        bits: 4 or 8.
        group_size: columns that share a scale: 128, or None for one scale per row.

    Returns:
        "weight_packed", "scale_packed" and "meta".

    Raises:
        ValueError: w is not 2:4 sparse; shapes or options that the format has not; NaN or infinity.
    """
    operation = "to_marlin24"
    source = read(operation, "w", w, dims=(2,))
    check_groups(operation, "w", source)
    _check_bits(operation, bits)
    rows, columns = source.shape
    if group_size not in (None, _GROUP):
        raise ValueError(f"{operation}: group_size is {group_size}, expected None or {_GROUP}")
    if rows % 64 or columns % 32 or (group_size is not None and columns % group_size):
        raise ValueError(
            f"{operation}: w has shape {source.shape}, expected rows a multiple of 64 and columns of {group_size or 32}"
        )
    groups = 1 if group_size is None else columns // group_size
    # The kernel computes in f16, and compressed-tensors rounds to it before it divides.
    with np.errstate(over="ignore"):
        values = source.floats().astype(np.float16)
    if not np.isfinite(values).all():
        raise ValueError(f"{operation}: w has values beyond the range of f16, NaN or infinity")
    grouped = values.reshape(rows, groups, -1)
    largest = (1 << (bits - 1)) - 1
    if scale is None:
        scales = (np.abs(grouped.astype(np.float32)).max(axis=-1) / largest).astype(np.float16)
    else:
        scales = read(operation, "scale", scale, dims=(2,)).floats().astype(np.float16)
        if scales.shape != (rows, groups):
            raise ValueError(f"{operation}: scale has shape {scales.shape}, expected {(rows, groups)}")
    quotient = np.divide(
        grouped, scales[..., None], out=np.zeros_like(grouped), where=(scales > 0)[..., None] & (grouped != 0)
    )
    codes = np.clip(np.rint(quotient), -largest - 1, largest).astype(np.int16).reshape(rows, columns)

    pairs = pairs_of(codes != 0, TORCH_PADS)
    stored = (gather(codes, pairs).T + (1 << (bits - 1))).astype(np.uint32)
    words = words_of(nibbles_of(pairs), "int16")
    meta = np.empty(words.size, np.int16)
    meta[_meta_offsets(*words.shape)] = words.reshape(-1)
    tiles = stored.reshape(columns // 2 // _TILE, _TILE, rows // _TILE, _TILE).transpose(0, 2, 1, 3)
    tiles = tiles.reshape(-1, 1024)[:, _weight_order(bits)].reshape(columns // 2 // _TILE, -1)
    packed = np.zeros((tiles.shape[0], tiles.shape[1] * bits // 32), np.uint32)
    for index in range(32 // bits):
        packed |= tiles[:, index :: 32 // bits] << np.uint32(bits * index)
    scales = scales.T
    if _reorders_scales(groups, columns):
        scales = scales.reshape(-1, 64)[:, _SCALE_ORDER].reshape(groups, rows)
    return {
        "weight_packed": like(source, packed.view(np.int32)),
        "scale_packed": like(source, scales),
        "meta": like(source, meta.reshape(words.shape[1] // 2, words.shape[0] * 2)),
    }


def from_marlin24(weight_packed: Any, scale_packed: Any, meta: Any, *, bits: int = 4) -> Any:
    """The dense dequantised weights [out_features, in_features] of a `marlin-24` checkpoint, in f32.

    Every value is a whole number times an f16 scale, so f32 holds it exactly.

    Raises:
        ValueError: shapes that do not fit each other; metadata that names no pair of indices.
    """
    operation = "from_marlin24"
    _check_bits(operation, bits)
    packed = read_integers(operation, "weight_packed", weight_packed, ("int32",), 2)
    words = read_integers(operation, "meta", meta, ("int16",), 2)
    source = read(operation, "scale_packed", scale_packed, dims=(2,))
    scales: Floats = source.floats()
    groups, rows = scales.shape
    columns = 32 * packed.shape[0]
    if rows % 64 or packed.shape[1] != rows * bits // 2 or words.shape != (columns // 32, 2 * rows):
        raise ValueError(
            f"{operation}: weight_packed has shape {packed.shape}, meta {words.shape} and scale_packed {scales.shape}, expected"
            f" (in/32, out·{bits}/2), (in/32, 2·out) and (groups, out) with out a multiple of 64"
        )
    if groups != 1 and groups * _GROUP != columns:
        raise ValueError(
            f"{operation}: scale_packed has {groups} groups for {columns} columns, expected 1 or {columns}/128"
        )
    factor = 32 // bits
    tiles = np.empty((packed.shape[0], packed.shape[1] * factor), np.uint32)
    for index in range(factor):
        tiles[:, index::factor] = packed.view(np.uint32) >> np.uint32(bits * index) & np.uint32((1 << bits) - 1)
    tiles = tiles.reshape(-1, 1024)[:, np.argsort(_weight_order(bits))]
    tiles = tiles.reshape(columns // 2 // _TILE, rows // _TILE, _TILE, _TILE).transpose(0, 2, 1, 3)
    stored = tiles.reshape(columns // 2, rows).T.astype(np.int32) - (1 << (bits - 1))
    if _reorders_scales(groups, columns):
        scales = scales.reshape(-1, 64)[:, np.argsort(_SCALE_ORDER)].reshape(groups, rows)
    shape = (rows, columns // 16)
    in_order = words.reshape(-1)[_meta_offsets(*shape)].reshape(shape)
    pairs = pairs_of_nibbles(operation, nibbles_of_words(in_order))
    dense = scatter(np.ascontiguousarray(stored), pairs, columns).astype(np.float32)
    dense *= np.repeat(scales.T.astype(np.float32), columns // groups, axis=1)
    return like(source, dense)


def _check_bits(operation: str, bits: int) -> None:
    if bits not in _INTERLEAVE:
        raise ValueError(f"{operation}: bits is {bits}, expected 4 or 8")


def _reorders_scales(groups: int, columns: int) -> bool:
    # compressed-tensors compares the group with the *stored* columns, so two groups of 128 stay in order.
    return groups > 1 and columns // 2 > _GROUP


_SCALE_ORDER = np.array([8 * block + place for block in range(8) for place in (0, 4, 1, 5, 2, 6, 3, 7)])


def _weight_order(bits: int) -> npt.NDArray[np.int64]:
    """Where the weights of a 16×64 tile come from: the fragments of mma m16n8k16, as each thread of a warp holds them."""
    order = []
    for thread in range(32):
        column, row = thread // 4, thread % 4
        start = column // 2 * 256 + 8 * (column % 2)
        rows = (2 * row, 2 * row + 1, 2 * row + 8, 2 * row + 9)
        places = [16 * one + start + 4 * block for block in (0, 1) for one in rows]
        order += [place + step for step in range(4) for place in places]
    interleave = _INTERLEAVE[bits]
    return np.array(order).reshape(-1, len(interleave))[:, interleave].reshape(-1)


def _meta_offsets(rows: int, words: int) -> npt.NDArray[np.int64]:
    """Where word (row, column) of the metadata stands: Marlin's own order of 64 rows, then as in CUTLASS."""
    row = np.arange(rows)[:, None]
    row = row // 64 * 64 + row % 2 * 2 + row % 8 // 4 + row % 4 // 2 * 32 + row % 64 // 8 * 4
    return _interleaved(rows, row, np.arange(words)[None, :])
