"""GGUF's types of two and three bits, and of four with a code book: blocks back to f32, as in dequant.py.

Q2_K and Q3_K hold sixteen runs of 16 values under small scales of their own; IQ4_* and MXFP4 look their nibbles up.
"""

from __future__ import annotations

import numpy as np

from .arrays import F32, U8

_IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
# Twice the values of FP4 (E2M1); the exponent's bias below makes up for it.
_FP4 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)


def _f16(blocks: U8, begin: int) -> F32:
    return np.ascontiguousarray(blocks[:, begin : begin + 2]).view("<f2").astype(np.float32)


def _two_bits(packed: U8) -> U8:
    """64 bytes to [blocks, 8, 32]: of each 32 bytes the lowest two bits of all, then the next two."""
    quarters = (packed.reshape(-1, 2, 1, 32) >> _SHIFTS.reshape(1, 1, 4, 1)) & np.uint8(3)
    runs: U8 = quarters.reshape(-1, 8, 32)
    return runs


def _nibbles(packed: U8) -> U8:
    """Low nibbles, then high ones, of each run of 16 bytes: [..., 16] → [..., 32]."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def q2_k(blocks: U8) -> F32:
    """16 scales and minimums in nibbles, 64 bytes of values, an f16 for each kind."""
    small = blocks[:, :16]
    steps = _f16(blocks, 80) * (small & 15).astype(np.float32)
    offsets = _f16(blocks, 82) * (small >> 4).astype(np.float32)
    values = _two_bits(blocks[:, 16:80]).reshape(-1, 16, 16).astype(np.float32)
    out: F32 = steps[:, :, None] * values - offsets[:, :, None]
    return out.reshape(-1, 256)


def q3_k(blocks: U8) -> F32:
    """A third bit in 32 bytes, 64 bytes of two, 16 scales of 6 bits in 12 bytes, one f16."""
    packed = blocks[:, 96:108]
    low = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
    high = (packed[:, None, 8:12] >> _SHIFTS.reshape(1, 4, 1)) & 3
    scales = (low | (high.reshape(-1, 16) << 4)).astype(np.float32) - 32
    # Byte l holds the third bit of value l in all eight runs of 32, run 0 lowest; clear means 4 less.
    bits = np.unpackbits(blocks[:, :32, None], axis=2, bitorder="little").transpose(0, 2, 1)
    values = _two_bits(blocks[:, 32:96]).astype(np.float32) - 4 + 4 * bits.astype(np.float32)
    out: F32 = (_f16(blocks, 108) * scales)[:, :, None] * values.reshape(-1, 16, 16)
    return out.reshape(-1, 256)


def iq4_nl(blocks: U8) -> F32:
    """An f16 and 32 nibbles into the code book."""
    return _f16(blocks, 0) * _IQ4[_nibbles(blocks[:, 2:18])]


def iq4_xs(blocks: U8) -> F32:
    """Eight runs of 32 such nibbles; a scale's low four bits in a nibble, its upper two in 16 bits for all."""
    low = np.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], axis=2).reshape(-1, 8)
    high = (blocks[:, 2:4, None] >> _SHIFTS.reshape(1, 1, 4)) & 3
    scales = (low | (high.reshape(-1, 8) << 4)).astype(np.float32) - 32
    values = _IQ4[_nibbles(blocks[:, 8:136].reshape(-1, 8, 16))]
    out: F32 = (_f16(blocks, 0) * scales)[:, :, None] * values
    return out.reshape(-1, 256)


def mxfp4(blocks: U8) -> F32:
    """An exponent (E8M0) and 32 values of FP4."""
    steps = np.ldexp(np.float32(1), blocks[:, :1].astype(np.int32) - 128)
    out: F32 = (steps * _FP4[_nibbles(blocks[:, 1:17])]).astype(np.float32)
    return out
