"""`sparse-24-bitmask` of compressed-tensors: half of the weights, and one bit per weight that says which.

Checked byte for byte against compressed-tensors 0.9.4 (tests/python/test_sparse24_bitmask.py holds what it wrote). In a
checkpoint the three arrays are `<layer>.compressed`, `<layer>.bitmask` and `<layer>.shape`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._arrays import like, read, read_integers
from ._groups import BITMASK_PADS, check_groups, gather, nonzeros_per_group, pairs_of, scatter


def to_bitmask(w: Any) -> dict[str, Any]:
    """Weights as a compressed-tensors checkpoint holds them.

    Args:
        w: 2:4 sparse weights [out_features, in_features], in_features a multiple of 4; f32, f64, f16, bf16, int8 or fp8.

    Returns:
        "compressed": the stored weights [out_features, in_features/2] in w's dtype. "bitmask": uint8
        [out_features, ⌈in_features/8⌉], weight k in bit k mod 8 of byte k/8. "shape": int64 [2, 1]. A group with fewer than two
        nonzeros stores zeros too, the same ones as compressed-tensors: places 0 2 if its first weight is nonzero, 1 3 if
        its second, else 2 3.

    Raises:
        ValueError: w is not 2:4 sparse; another in_features. (compressed-tensors keeps the two largest of a group that has more
            than two nonzeros, and for fp8 compares raw bytes: that is data lost, and refused here.)
    """
    source = read("to_bitmask", "w", w, narrow=True, dims=(2,))
    if source.shape[1] % 4:
        raise ValueError(f"to_bitmask: w has shape {source.shape}, expected in_features to be a multiple of 4")
    check_groups("to_bitmask", "w", source)
    pairs = pairs_of(source.nonzero(), BITMASK_PADS)
    chosen = scatter(np.ones((source.shape[0], source.shape[1] // 2), np.uint8), pairs, source.shape[1])
    return {
        "compressed": source.from_bits(gather(source.bits(), pairs)),
        "bitmask": like(source, np.packbits(chosen, axis=-1, bitorder="little")),
        "shape": like(source, np.array(source.shape, np.int64).reshape(2, 1)),
    }


def from_bitmask(compressed: Any, bitmask: Any, shape: Any) -> Any:
    """The dense weights of a `sparse-24-bitmask` checkpoint.

    Args:
        compressed: [out_features, in_features/2].
        bitmask: uint8 [out_features, ⌈in_features/8⌉].
        shape: the two numbers: an array [2, 1] or [2], a list or a tuple.

    Returns:
        [out_features, in_features] in the kind and dtype of `compressed`.

    Raises:
        ValueError: shapes that do not fit each other; a group in which not exactly two bits are set; bits set beyond the
            last column.
    """
    source = read("from_bitmask", "compressed", compressed, narrow=True, dims=(2,))
    packed = read_integers("from_bitmask", "bitmask", bitmask, ("uint8",), 2)
    sizes = [int(size) for size in np.asarray(shape).reshape(-1)]
    if len(sizes) != 2 or sizes[0] < 1 or sizes[1] < 4 or sizes[1] % 4:
        raise ValueError(f"from_bitmask: shape is {sizes}, expected two sizes, the second a multiple of 4")
    rows, columns = sizes
    for name, found, expected in (
        ("compressed", source.shape, (rows, columns // 2)),
        ("bitmask", packed.shape, (rows, -(-columns // 8))),
    ):
        if found != expected:
            raise ValueError(
                f"from_bitmask: {name} has shape {found}, expected {expected} for weights of {rows, columns}"
            )
    bits = np.unpackbits(packed, axis=-1, bitorder="little")
    if bits[:, columns:].any():
        raise ValueError(f"from_bitmask: bitmask has bits set beyond column {columns}")
    mask = np.ascontiguousarray(bits[:, :columns]).view(np.bool_)
    counts = nonzeros_per_group(mask)
    if (counts != 2).any():
        row, group = (int(index) for index in np.argwhere(counts != 2)[0])
        raise ValueError(
            f"from_bitmask: bitmask of row {row}, group {group} has {int(counts[row, group])} bits set, expected 2"
        )
    return source.from_bits(scatter(source.bits(), pairs_of(mask, BITMASK_PADS), columns))
