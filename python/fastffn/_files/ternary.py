"""GGUF's ternary blocks, TQ1_0 and TQ2_0, and BitNet's I2_S: bytes to codes -1, 0 and 1, and back, byte for byte.

TQ2_0   256 weights in 64 bytes and an f16 scale. Bytes 0-31 hold weights 0-127, byte m those at m, 32 + m, 64 + m, 96 + m in its
        bits 1:0, 3:2, 5:4, 7:6; bytes 32-63 the other 128 likewise. Code = weight + 1.
TQ1_0   256 weights in 52 bytes and an f16 scale, five to a byte: v = Σ trit_n · 3^(4 - n), byte = ceil(256 · v / 243). Bytes 0-31
        hold weights 0-159 at strides of 32, bytes 32-47 weights 160-239 at strides of 16, bytes 48-51 the last 16, four to a byte
        at strides of 4 (a fifth trit of 0 fills v up).
I2_S    a whole tensor in 2 bits a weight, then one f32 scale, 32 bytes with its padding. Three programs' builds wrote three orders
        under this one name, and nothing in the file says which:
          "x86"    blocks of 128 along a row in 32 bytes: byte p holds weights p, 32 + p, 64 + p, 96 + p in bits 7:6 … 1:0
          "arm"    blocks of 64 in 16 bytes: byte p holds weights p, 16 + p, 32 + p, 48 + p
          "rows"   four rows in as many bytes as columns: byte c holds column c of rows 0, 1, 2, 3 of the four
"""

from __future__ import annotations

import math

import numpy as np

from .arrays import I8, U8
from .errors import FileFormatError

_POWERS = np.array([81, 27, 9, 3, 1], np.uint16)
# Byte of five trits, by their value; and the other way round (255: no such byte).
_BYTES = ((np.arange(243, dtype=np.uint16) * 256 + 242) // 243).astype(np.uint8)
_VALUES = np.full(256, 255, np.uint8)
_VALUES[_BYTES] = np.arange(243, dtype=np.uint8)

# I2_S: variant → (rows, columns) that a block needs.
I2_S_VARIANTS = {"x86": (1, 128), "arm": (1, 64), "rows": (4, 1)}
I2_S_TAIL = 32


def _first(wrong: np.ndarray) -> str:
    """Where the first fault is: "[2, 5]" for [blocks or rows, weight or byte]."""
    return str([int(i) for i in np.argwhere(wrong)[0]])


def _ternary(codes: U8, what: str) -> I8:
    """Codes 0, 1 and 2 to weights; 3 stands for none and is refused."""
    if codes.max(initial=0) > 2:
        raise FileFormatError(f"{what}: code 3, which stands for no weight, at {_first(codes == 3)}")
    out: I8 = codes.astype(np.int8) - np.int8(1)
    return out


def fields(packed: U8, shifts: tuple[int, ...]) -> U8:
    """[..., n] bytes to [..., 4, n] codes."""
    out: U8 = (packed[..., None, :] >> np.array(shifts, np.uint8)[:, None]) & np.uint8(3)
    return out


def joined(codes: I8, shifts: tuple[int, ...]) -> U8:
    """[..., 4, n] weights to [..., n] bytes."""
    shifted = (codes + np.int8(1)).astype(np.uint8) << np.array(shifts, np.uint8)[:, None]
    out: U8 = np.bitwise_or.reduce(shifted, axis=-2)
    return out


def decode_tq2_0(blocks: U8) -> I8:
    """[blocks, 64] bytes to [blocks, 256] weights."""
    return _ternary(fields(blocks.reshape(-1, 2, 32), (0, 2, 4, 6)).reshape(-1, 256), "TQ2_0 [block, weight]")


def encode_tq2_0(codes: I8) -> U8:
    """[blocks, 256] weights to [blocks, 64] bytes."""
    return joined(codes.reshape(-1, 2, 4, 32), (0, 2, 4, 6)).reshape(-1, 64)


def _trits(packed: U8, count: int) -> I8:
    """[blocks, n] bytes to [blocks, count, n] weights; bytes that no five trits make are refused."""
    values = _VALUES[packed]
    unknown = values == 255
    if unknown.any():
        raise FileFormatError(f"TQ1_0 [block, byte]: a byte that no five weights make, at {_first(unknown)}")
    digits = values[:, None, :] // _POWERS[:, None].astype(np.uint8) % 3
    if count == 4 and digits[:, 4].any():
        raise FileFormatError(f"TQ1_0 [block, byte]: a fifth weight in a byte of four, at {_first(digits[:, 4] != 0)}")
    out: I8 = digits[:, :count].astype(np.int8) - np.int8(1)
    return out


def _trit_bytes(codes: I8) -> U8:
    """[blocks, 4 or 5, n] weights to [blocks, n] bytes."""
    digits = (codes + np.int8(1)).astype(np.uint16)
    out: U8 = _BYTES[(digits * _POWERS[: codes.shape[1], None]).sum(axis=1)]
    return out


def decode_tq1_0(blocks: U8) -> I8:
    """[blocks, 52] bytes to [blocks, 256] weights."""
    parts = (blocks[:, :32], 5), (blocks[:, 32:48], 5), (blocks[:, 48:52], 4)
    return np.concatenate([_trits(packed, count).reshape(len(blocks), -1) for packed, count in parts], axis=1)


def encode_tq1_0(codes: I8) -> U8:
    """[blocks, 256] weights to [blocks, 52] bytes."""
    parts = (codes[:, :160], 5), (codes[:, 160:240], 5), (codes[:, 240:], 4)
    return np.concatenate([_trit_bytes(part.reshape(len(codes), count, -1)) for part, count in parts], axis=1)


def i2_s_bytes(shape: tuple[int, ...]) -> int:
    """Bytes of a tensor in I2_S."""
    return math.prod(shape) // 4 + I2_S_TAIL


def i2_s_variants(shape: tuple[int, ...]) -> list[str]:
    """The variants that can hold a tensor of this shape."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    return [name for name, (r, c) in I2_S_VARIANTS.items() if rows % r == 0 and columns % c == 0]


def decode_i2_s(raw: U8, shape: tuple[int, ...], variant: str) -> I8:
    """All bytes but the tail to weights of this shape."""
    if variant == "rows":
        codes = fields(raw.reshape(-1, shape[-1]), (6, 4, 2, 0))
    else:
        codes = fields(raw.reshape(-1, I2_S_VARIANTS[variant][1] // 4), (6, 4, 2, 0))
    return _ternary(codes.reshape(-1, shape[-1]), "I2_S [row, column]").reshape(shape)


def encode_i2_s(codes: I8, variant: str) -> U8:
    """Weights to all bytes but the tail."""
    width = codes.shape[-1] if variant == "rows" else I2_S_VARIANTS[variant][1] // 4
    return joined(codes.reshape(-1, 4, width), (6, 4, 2, 0)).reshape(-1)
