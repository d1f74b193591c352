"""torch's CUTLASS form: the canonical values, and the metadata words in the order that sm80's sparse GEMM loads them.

This is what `torch.sparse.SparseSemiStructuredTensorCUTLASS` holds as `packed` and `meta`, and what
`torch.sparse._semi_structured_conversions` computes; the order is that of reorder_meta() in CUTLASS's host_reorder.h,
stored column-major, two columns interleaved.

A word of metadata covers 16 columns of 16-bit weights (int16: four nibbles) or 32 columns of int8 (int32: eight). For
f32 the hardware knows 1:2 only, so torch's f32 form stores one of every two; it is not made here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._arrays import like, read, read_integers
from ._canonical import nibbles_of, pairs_of_nibbles
from ._groups import TORCH_PADS, check_groups, gather, pairs_of, scatter

# dtype of the weights → (dtype of a word, rows that are reordered together)
_WORDS = {"float16": ("int16", 32), "bfloat16": ("int16", 32), "int8": ("int32", 16)}


def to_cutlass(w: Any) -> tuple[Any, Any]:
    """Weights for torch's CUTLASS kernels: bit for bit what torch's own conversion gives.

    Args:
        w: 2:4 sparse weights [out_features, in_features]: f16 or bf16 with rows a multiple of 32 and columns of 32, or int8
            with rows a multiple of 16 and columns of 64. (torch's kernels themselves ask for columns of 64 and 128.)

    Returns:
        (values, meta): [out_features, in_features/2] in w's dtype, and int16 [out_features, in_features/16] or int32
        [out_features, in_features/32].

    Raises:
        ValueError: w is not 2:4 sparse (torch silently drops what is too much); shapes that CUTLASS does not take.
        TypeError: another dtype.
    """
    source = read("to_cutlass", "w", w, narrow=True, dims=(2,))
    word, group = _word("to_cutlass", "w", source.dtype)
    per_word = 2 * np.dtype(word).itemsize
    if source.shape[0] % group or source.shape[1] % (8 * per_word):
        raise ValueError(
            f"to_cutlass: w has shape {source.shape}, expected rows a multiple of {group} and columns of {8 * per_word}"
            f" for {source.dtype}"
        )
    check_groups("to_cutlass", "w", source)
    pairs = pairs_of(source.nonzero(), TORCH_PADS)
    words = words_of(nibbles_of(pairs), word)
    meta = np.empty(words.size, words.dtype)
    meta[meta_offsets(words.shape[0], words.shape[1], group)] = words.reshape(-1)
    return source.from_bits(gather(source.bits(), pairs)), like(source, meta.reshape(words.shape))


def from_cutlass(values: Any, meta: Any) -> Any:
    """The dense weights of :func:`to_cutlass`, or of torch's own conversion.

    Raises:
        ValueError: shapes that do not fit each other; metadata that names no pair of indices. TypeError: other dtypes.
    """
    source = read("from_cutlass", "values", values, narrow=True, dims=(2,))
    word, group = _word("from_cutlass", "values", source.dtype)
    packed = read_integers("from_cutlass", "meta", meta, (word,), 2)
    rows, stored = source.shape
    per_word = 2 * np.dtype(word).itemsize
    if rows % group or stored % (4 * per_word) or packed.shape != (rows, stored // (2 * per_word)):
        raise ValueError(
            f"from_cutlass: values have shape {source.shape} and meta {packed.shape}, expected rows a multiple of {group}, values"
            f" of a multiple of {4 * per_word} columns, and a word of meta for {2 * per_word} of them"
        )
    words = packed.reshape(-1)[meta_offsets(packed.shape[0], packed.shape[1], group)].reshape(packed.shape)
    pairs = pairs_of_nibbles("from_cutlass", nibbles_of_words(words))
    return source.from_bits(scatter(source.bits(), pairs, 2 * stored))


def meta_offsets(rows: int, words: int, group: int) -> npt.NDArray[np.int64]:
    """Where word (row, column), counted row by row, stands in CUTLASS's order."""
    row = np.arange(rows)[:, None]
    column = np.arange(words)[None, :]
    row = row // group * group + row % 8 * (group // 8) + row % group // 8
    return _interleaved(rows, row, column)


def _interleaved(rows: int, row: npt.NDArray[np.int64], column: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    # In every 2×2 the two words off the diagonal change places; then column-major, two columns interleaved.
    swap = (row % 2 == 0).astype(np.int64) * (column % 2) - (row % 2) * (column % 2 == 0)
    row, column = row + swap, column - swap
    offsets: npt.NDArray[np.int64] = (column // 2 * rows * 2 + row * 2 + column % 2).reshape(-1)
    return offsets


def words_of(nibbles: npt.NDArray[np.uint8], word: str) -> npt.NDArray[Any]:
    """Four or eight nibbles per word, the first lowest: [R, G] → [R, G/4] int16 or [R, G/8] int32."""
    octets = nibbles[:, 0::2] | (nibbles[:, 1::2] << np.uint8(4))
    words: npt.NDArray[Any] = np.ascontiguousarray(octets).view(np.dtype(word).newbyteorder("<")).astype(word)
    return words


def nibbles_of_words(words: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The reverse of :func:`words_of`."""
    octets = np.ascontiguousarray(words.astype(words.dtype.newbyteorder("<"))).view(np.uint8)
    return np.stack([octets & 0xF, octets >> 4], axis=-1).reshape(words.shape[0], -1)


def _word(operation: str, name: str, dtype: str) -> tuple[str, int]:
    if dtype not in _WORDS:
        raise TypeError(f"{operation}: {name} has dtype {dtype}, expected {', '.join(_WORDS)}")
    return _WORDS[dtype]
