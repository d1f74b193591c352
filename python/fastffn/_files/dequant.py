"""GGUF's tensor types in NumPy: blocks of quantised values back to f32.

Each function takes the blocks as uint8 [blocks, bytes per block] and returns f32 [blocks, values per block].
A block of 32 holds its two halves in the low and high nibbles of 16 bytes. A K-block of 256 holds eight runs of 32
(Q4_K, Q5_K) or sixteen of 16 (Q6_K), each with its own small scale under one f16 scale for the block.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import k_quants
from .arrays import F32, U8, bf16_to_f32
from .ternary import decode_tq1_0, decode_tq2_0

# Every type number that has been given a name, so that an unsupported one can be named in the error.
TYPE_NAMES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 36: "I2_S", 39: "MXFP4",
}  # fmt: skip


def type_name(kind: int) -> str:
    """The name of a type number, or "type N"."""
    return TYPE_NAMES.get(kind, f"type {kind}")


def _f16(blocks: U8, begin: int) -> F32:
    """The f16 at byte `begin` of each block, as f32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, begin : begin + 2]).view("<f2").astype(np.float32)


def _nibbles(packed: U8) -> U8:
    """Low nibbles, then high ones: [blocks, n] → [blocks, 2n]."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=1)


def _fifth_bits(blocks: U8, begin: int) -> U8:
    """The 32 bits at byte `begin`, lowest first, each as 0 or 16: [blocks, 32]."""
    bits: U8 = np.unpackbits(blocks[:, begin : begin + 4], axis=1, bitorder="little") * np.uint8(16)
    return bits


def _floats_f32(blocks: U8) -> F32:
    return np.ascontiguousarray(blocks).view("<f4").astype(np.float32)


def _floats_f16(blocks: U8) -> F32:
    return np.ascontiguousarray(blocks).view("<f2").astype(np.float32)


def _floats_bf16(blocks: U8) -> F32:
    return bf16_to_f32(np.ascontiguousarray(blocks).view("<u2"))


def _floats_f64(blocks: U8) -> F32:
    return np.ascontiguousarray(blocks).view("<f8").astype(np.float32)


def _q4_0(blocks: U8) -> F32:
    return _f16(blocks, 0) * (_nibbles(blocks[:, 2:18]).astype(np.float32) - 8)


def _q4_1(blocks: U8) -> F32:
    return _f16(blocks, 0) * _nibbles(blocks[:, 4:20]).astype(np.float32) + _f16(blocks, 2)


def _q5_0(blocks: U8) -> F32:
    values = _nibbles(blocks[:, 6:22]) | _fifth_bits(blocks, 2)
    return _f16(blocks, 0) * (values.astype(np.float32) - 16)


def _q5_1(blocks: U8) -> F32:
    values = _nibbles(blocks[:, 8:24]) | _fifth_bits(blocks, 4)
    return _f16(blocks, 0) * values.astype(np.float32) + _f16(blocks, 2)


def _q8_0(blocks: U8) -> F32:
    return _f16(blocks, 0) * np.ascontiguousarray(blocks[:, 2:34]).view(np.int8).astype(np.float32)


def _k_scales(packed: U8) -> tuple[F32, F32]:
    """Twelve bytes to eight 6-bit scales and eight 6-bit minimums.

    The low six bits of bytes 0–3 and 4–7 are scales and minimums 0–3; bytes 8–11 hold the low nibbles of the other
    four of each, whose upper two bits sit on top of bytes 0–3 and 4–7.
    """
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (third & 15) | ((first >> 6) << 4)], axis=1)
    minimums = np.concatenate([second & 63, (third >> 4) | ((second >> 6) << 4)], axis=1)
    return scales.astype(np.float32), minimums.astype(np.float32)


def _k_runs(packed: U8) -> U8:
    """128 bytes to [blocks, 8, 32]: each 32 bytes hold one run in their low nibbles and the next in the high ones."""
    quads = packed.reshape(-1, 4, 1, 32)
    return np.concatenate([quads & 15, quads >> 4], axis=2).reshape(-1, 8, 32)


def _k_combine(blocks: U8, values: U8) -> F32:
    scales, minimums = _k_scales(blocks[:, 4:16])
    steps = _f16(blocks, 0) * scales
    offsets = _f16(blocks, 2) * minimums
    out: F32 = steps[:, :, None] * values.astype(np.float32) - offsets[:, :, None]
    return out.reshape(-1, 256)


def _q4_k(blocks: U8) -> F32:
    return _k_combine(blocks, _k_runs(blocks[:, 16:144]))


def _q5_k(blocks: U8) -> F32:
    # Byte l of the 32 holds the fifth bits of value l in all eight runs, run 0 lowest.
    bits = np.unpackbits(blocks[:, 16:48, None], axis=2, bitorder="little").transpose(0, 2, 1)
    return _k_combine(blocks, _k_runs(blocks[:, 48:176]) | (bits * np.uint8(16)))


def _q6_k(blocks: U8) -> F32:
    low = blocks[:, :128].reshape(-1, 2, 1, 2, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    values = (low | (high << 4)).astype(np.float32) - 32
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8).astype(np.float32)
    steps = _f16(blocks, 208) * scales
    out: F32 = steps[:, :, None] * values.reshape(-1, 16, 16)
    return out.reshape(-1, 256)


def _tq1_0(blocks: U8) -> F32:
    return _f16(blocks, 52) * decode_tq1_0(blocks[:, :52]).astype(np.float32)


def _tq2_0(blocks: U8) -> F32:
    return _f16(blocks, 64) * decode_tq2_0(blocks[:, :64]).astype(np.float32)


# BitNet's own number for whole tensors of 2-bit weights; see ternary.py. What it says depends on the build that wrote it.
I2_S = 36

# Type number → (values per block, bytes per block, function).
BLOCKS: dict[int, tuple[int, int, Callable[[U8], F32]]] = {
    0: (1, 4, _floats_f32),
    1: (1, 2, _floats_f16),
    2: (32, 18, _q4_0),
    3: (32, 20, _q4_1),
    6: (32, 22, _q5_0),
    7: (32, 24, _q5_1),
    8: (32, 34, _q8_0),
    10: (256, 84, k_quants.q2_k),
    11: (256, 110, k_quants.q3_k),
    12: (256, 144, _q4_k),
    13: (256, 176, _q5_k),
    14: (256, 210, _q6_k),
    20: (32, 18, k_quants.iq4_nl),
    23: (256, 136, k_quants.iq4_xs),
    28: (1, 8, _floats_f64),
    30: (1, 2, _floats_bf16),
    34: (256, 54, _tq1_0),
    35: (256, 66, _tq2_0),
    39: (32, 17, k_quants.mxfp4),
}


def block_layout(kind: int) -> tuple[int, int]:
    """Values and bytes per block of a supported type."""
    values, size, _ = BLOCKS[kind]
    return values, size


def dequantise(raw: U8, kind: int) -> F32:
    """All values of a tensor's bytes as f32, flat."""
    values, size, function = BLOCKS[kind]
    if raw.size % size:
        raise ValueError(f"dequantise: {raw.size} bytes are no multiple of {type_name(kind)}'s {size}")
    blocks = raw.reshape(-1, size)
    out = np.empty((blocks.shape[0], values), np.float32)
    # In slices: the intermediate arrays of a whole embedding table would take several times its size.
    step = max(1, (1 << 20) // values)
    for begin in range(0, blocks.shape[0], step):
        out[begin : begin + step] = function(blocks[begin : begin + step])
    return out.reshape(-1)
