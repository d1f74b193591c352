"""Dequantisers against plain loops that follow each block's layout value by value."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from fastffn._files.dequant import BLOCKS, dequantise, type_name


def half(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def q4_0(b: bytes) -> list[float]:
    d = half(b, 0)
    return [d * ((b[2 + i % 16] >> (4 * (i // 16)) & 15) - 8) for i in range(32)]


def q4_1(b: bytes) -> list[float]:
    d, m = half(b, 0), half(b, 2)
    return [d * (b[4 + i % 16] >> (4 * (i // 16)) & 15) + m for i in range(32)]


def q5_0(b: bytes) -> list[float]:
    d, high = half(b, 0), struct.unpack_from("<I", b, 2)[0]
    return [d * (((b[6 + i % 16] >> (4 * (i // 16)) & 15) | (high >> i & 1) << 4) - 16) for i in range(32)]


def q5_1(b: bytes) -> list[float]:
    d, m, high = half(b, 0), half(b, 2), struct.unpack_from("<I", b, 4)[0]
    return [d * ((b[8 + i % 16] >> (4 * (i // 16)) & 15) | (high >> i & 1) << 4) + m for i in range(32)]


def q8_0(b: bytes) -> list[float]:
    return [half(b, 0) * signed(b[2 + i]) for i in range(32)]


def k_scale(s: bytes, run: int) -> tuple[int, int]:
    if run < 4:
        return s[run] & 63, s[run + 4] & 63
    return (s[run + 4] & 15) | (s[run - 4] >> 6) << 4, (s[run + 4] >> 4) | (s[run] >> 6) << 4


def q4_k(b: bytes) -> list[float]:
    out = []
    for i in range(256):
        run = i // 32
        scale, minimum = k_scale(b[4:16], run)
        q = b[16 + 32 * (run // 2) + i % 32] >> (4 * (run % 2)) & 15
        out.append(half(b, 0) * scale * q - half(b, 2) * minimum)
    return out


def q5_k(b: bytes) -> list[float]:
    out = []
    for i in range(256):
        run = i // 32
        scale, minimum = k_scale(b[4:16], run)
        q = b[48 + 32 * (run // 2) + i % 32] >> (4 * (run % 2)) & 15
        q |= (b[16 + i % 32] >> run & 1) << 4
        out.append(half(b, 0) * scale * q - half(b, 2) * minimum)
    return out


def q6_k(b: bytes) -> list[float]:
    out = []
    for i in range(256):
        side, quarter, place = i // 128, i % 128 // 32, i % 32
        low = b[64 * side + 32 * (quarter % 2) + place] >> (4 * (quarter // 2)) & 15
        high = b[128 + 32 * side + place] >> (2 * quarter) & 3
        out.append(half(b, 208) * signed(b[192 + i // 16]) * ((low | high << 4) - 32))
    return out


def two_bits(b: bytes, at: int, i: int) -> int:
    return b[at + 32 * (i // 128) + i % 32] >> (2 * (i % 128 // 32)) & 3


def q2_k(b: bytes) -> list[float]:
    d, m = half(b, 80), half(b, 82)
    return [d * (b[i // 16] & 15) * two_bits(b, 16, i) - m * (b[i // 16] >> 4) for i in range(256)]


def q3_k(b: bytes) -> list[float]:
    out = []
    for i in range(256):
        run = i // 16
        low = b[96 + run % 8] >> (4 * (run // 8)) & 15
        scale = (low | (b[104 + run % 4] >> (2 * (run // 4)) & 3) << 4) - 32
        value = two_bits(b, 32, i) - (0 if b[i % 32] >> (i // 32) & 1 else 4)
        out.append(half(b, 108) * scale * value)
    return out


CODES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def iq4_nl(b: bytes) -> list[float]:
    return [half(b, 0) * CODES[b[2 + i % 16] >> (4 * (i // 16)) & 15] for i in range(32)]


def iq4_xs(b: bytes) -> list[float]:
    out = []
    for i in range(256):
        run, place = i // 32, i % 32
        high = struct.unpack_from("<H", b, 2)[0] >> (2 * run) & 3
        scale = ((b[4 + run // 2] >> (4 * (run % 2)) & 15) | high << 4) - 32
        out.append(half(b, 0) * scale * CODES[b[8 + 16 * run + place % 16] >> (4 * (place // 16)) & 15])
    return out


def trit(byte: int, n: int) -> int:
    return ((byte * 3**n & 255) * 3 >> 8) - 1


def tq1_0(b: bytes) -> list[float]:
    out = [trit(b[i % 32], i // 32) for i in range(160)]
    out += [trit(b[32 + i % 16], i // 16) for i in range(80)]
    out += [trit(b[48 + i % 4], i // 4) for i in range(16)]
    return [half(b, 52) * value for value in out]


def tq2_0(b: bytes) -> list[float]:
    return [half(b, 64) * ((b[32 * (i // 128) + i % 32] >> (2 * (i % 128 // 32)) & 3) - 1) for i in range(256)]


def mxfp4(b: bytes) -> list[float]:
    numbers = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    codes = [b[1 + i % 16] >> (4 * (i // 16)) & 15 for i in range(32)]
    return [2.0 ** (b[0] - 127) * numbers[code & 7] * (-1 if code & 8 else 1) for code in codes]


LOOPS: dict[int, Callable[[bytes], list[float]]] = {
    0: lambda b: [struct.unpack("<f", b)[0]],
    1: lambda b: [half(b, 0)],
    2: q4_0,
    3: q4_1,
    6: q5_0,
    7: q5_1,
    8: q8_0,
    10: q2_k,
    11: q3_k,
    12: q4_k,
    13: q5_k,
    14: q6_k,
    20: iq4_nl,
    23: iq4_xs,
    28: lambda b: [struct.unpack("<d", b)[0]],
    30: lambda b: [struct.unpack("<f", b"\0\0" + b)[0]],
    34: tq1_0,
    35: tq2_0,
    39: mxfp4,
}
# Where each block keeps its f16 scales; random bits there would give infinities.
SCALES = {
    1: (0,), 2: (0,), 3: (0, 2), 6: (0,), 7: (0, 2), 8: (0,), 10: (80, 82), 11: (108,), 12: (0, 2), 13: (0, 2),
    14: (208,), 20: (0,), 23: (0,), 34: (52,), 35: (64,), 39: (),
}  # fmt: skip


def blocks(kind: int, count: int) -> bytes:
    rng = np.random.default_rng(kind)
    _values, size, _ = BLOCKS[kind]
    if kind in (0, 28, 30):
        numbers = rng.standard_normal(count)
        if kind == 30:
            return (numbers.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        return numbers.astype("<f4" if kind == 0 else "<f8").tobytes()
    raw = rng.integers(0, 256, (count, size), np.uint8)
    if kind == 39:
        raw[:, 0] = rng.integers(100, 150, count)  # an exponent
    if kind == 34:  # five trits, and four with a fifth of 0
        trits = rng.integers(0, 243, (count, size))
        trits[:, 48:] -= trits[:, 48:] % 3
        raw = (-(-256 * trits // 243)).astype(np.uint8)
    if kind == 35:  # no code 3
        raw &= ~(raw & raw << 1 & 0xAA)
    for at in SCALES[kind]:
        scale = (0.1 * rng.standard_normal(count)).astype("<f2")
        raw[:, at : at + 2] = scale.view(np.uint8).reshape(count, 2)
    return raw.tobytes()


@pytest.mark.parametrize("kind", sorted(BLOCKS), ids=type_name)
def test_against_loops(kind: int) -> None:
    values, size, _ = BLOCKS[kind]
    raw = blocks(kind, 40)
    expected = [value for at in range(0, len(raw), size) for value in LOOPS[kind](raw[at : at + size])]
    found = dequantise(np.frombuffer(raw, np.uint8), kind)
    assert found.dtype == np.float32 and found.shape == (40 * values,)
    # A product and a sum, each rounded to f32 once or twice.
    scale = np.max(np.abs(expected))
    np.testing.assert_allclose(found, expected, rtol=4 * 2.0**-24, atol=4 * 2.0**-24 * scale)


def test_slices_join_without_a_seam() -> None:
    raw = np.frombuffer(blocks(8, 70_000), np.uint8)
    whole = dequantise(raw, 8)
    for at in (0, 32_767, 32_768, 69_999):
        np.testing.assert_array_equal(whole[32 * at : 32 * at + 32], dequantise(raw[34 * at : 34 * at + 34], 8))


def test_a_partial_block_is_refused() -> None:
    with pytest.raises(ValueError, match="35 bytes are no multiple of Q8_0's 34"):
        dequantise(np.zeros(35, np.uint8), 8)
