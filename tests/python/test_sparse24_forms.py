"""The forms that other programs keep 2:4 weights in: equal to theirs, there and back, and what is damaged is refused.

Numbers marked "written by compressed-tensors" are the output of compressed-tensors 0.9.4 on `formula(...)`, run once and
copied here; it need not be installed. Marlin's longer arrays are compared by the SHA-256 of their bytes.
"""

from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np
import pytest

import fastffn as ff
from reference import sparse24 as oracle
from sparse24_support import formula, random24, same_bits

s24 = ff.sparse24
SHAPES = [(1, 4), (3, 8), (5, 12), (32, 64), (7, 132)]
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, ml_dtypes.float8_e5m2]
PADS = np.array([[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)


def of_dtype(w: np.ndarray, dtype: type) -> np.ndarray:
    return np.rint(20 * w).astype(np.int8) if dtype == np.int8 else w.astype(dtype)


def special() -> np.ndarray:
    """NaN, infinities, the smallest numbers and negative zeros: bits that must survive."""
    w = random24(4, 16, holes=0)
    at = np.argwhere(w != 0)
    for (row, column), value in zip(at, (np.nan, np.inf, -np.inf, 1e-45, -1e-45, 3e38), strict=False):
        w[row, column] = value
    return w


# ---- canonical ----


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 1), (3, 6), (2, 7), (1, 13)])
def test_canonical(shape, dtype):
    w = of_dtype(random24(*shape), dtype)
    values, metadata = s24.compress24(w)
    groups = -(-shape[1] // 4)
    assert values.dtype == w.dtype and values.shape == (shape[0], 2 * groups)
    assert metadata.dtype == np.uint8 and metadata.shape == (shape[0], -(-groups // 2))
    expected, pairs = oracle.compress(w.astype(np.float64), oracle.canonical_pads)
    assert np.array_equal(values.astype(np.float64), expected)
    for row in range(shape[0]):
        nibbles = [oracle.NIBBLES[pair] for pair in pairs[row]] + [0xE] * (groups % 2)
        assert metadata[row].tolist() == [
            low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True)
        ]
    assert same_bits(s24.decompress24(values, metadata, shape[1]), w)


def test_canonical_pads():
    """E where nothing, the third or the fourth is nonzero, C and D where the first or the second is."""
    assert (s24.compress24(PADS)[1] & 0xF).ravel().tolist() == [0xE, 0xC, 0xD, 0xE, 0xE]


def test_bits_survive():
    w = special()
    for there, back in (
        (s24.compress24, lambda made: s24.decompress24(*made)),
        (s24.to_bitmask, lambda made: s24.from_bitmask(**made)),
    ):
        assert same_bits(back(there(w)), w)


@pytest.mark.parametrize("nibble", sorted(set(range(16)) - {4, 8, 9, 0xC, 0xD, 0xE}))
def test_canonical_nibbles_that_name_no_pair(nibble):
    values, metadata = s24.compress24(random24(3, 16))
    metadata[1, 1] = (metadata[1, 1] & 0xF) | nibble << 4
    with pytest.raises(ValueError, match=rf"row 1, group 3 is {nibble:#x} \(indices {nibble & 3} and {nibble >> 2}\)"):
        s24.decompress24(values, metadata)


def test_canonical_errors():
    values, metadata = s24.compress24(random24(3, 16))
    for call, message in (
        (lambda: s24.decompress24(values, metadata[:, :1]), r"metadata has shape \(3, 1\), expected \(3, 2\)"),
        (lambda: s24.decompress24(values, metadata[:2]), r"metadata has shape \(2, 2\), expected \(3, 2\)"),
        (lambda: s24.decompress24(values[:, :7], metadata), "two per group"),
        (lambda: s24.decompress24(values, metadata, 12), "in_features is 12, expected 13 to 16"),
        (lambda: s24.decompress24(values, metadata, 17), "in_features is 17, expected 13 to 16"),
        (lambda: s24.decompress24(values[0], metadata), "expected 2 dimensions"),
        (lambda: s24.compress24(np.ones((2, 4), np.float32)), "compress24: w is not 2:4 sparse: row 0, group 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="metadata has dtype int64, expected uint8"):
        s24.decompress24(values, metadata.astype(np.int64))
    tail, meta = s24.compress24(np.array([[1, 2, 0, 0]], np.float32))
    with pytest.raises(ValueError, match="row 0 has a nonzero weight beyond in_features 1"):
        s24.decompress24(tail, meta, 1)


# ---- compressed-tensors' bitmask ----


def test_bitmask_written_by_compressed_tensors():
    made = s24.to_bitmask(formula(3, 12))
    assert made["compressed"].tolist() == [[-7, -2, -7, -2, -7, 3], [6, 3, 6, 0, 6, -3], [4, -5, 2, 1, 7, 0]]
    assert made["bitmask"].tolist() == [[195, 10], [165, 12], [89, 10]]
    assert made["shape"].tolist() == [[3], [12]] and made["shape"].dtype == np.int64
    five = [[195, 106, 9], [165, 172, 6], [89, 202, 10], [150, 53, 12], [202, 89, 3]]
    assert s24.to_bitmask(formula(5, 20))["bitmask"].tolist() == five
    # Groups with fewer than two nonzeros: 0011 1010 0101 0011 0011, as get_24_bytemasks() gives for these.
    assert s24.to_bitmask(PADS)["bitmask"].ravel().tolist() == [0b1100, 0b0101, 0b1010, 0b1100, 0b1100]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_bitmask(shape, dtype):
    w = of_dtype(random24(*shape), dtype)
    made = s24.to_bitmask(w)
    expected, pairs = oracle.compress(w.astype(np.float64), oracle.bitmask_pads)
    assert made["compressed"].dtype == w.dtype and np.array_equal(made["compressed"].astype(np.float64), expected)
    for row in range(shape[0]):
        places = [4 * group + index for group, pair in enumerate(pairs[row]) for index in pair]
        bits = [sum(1 << place % 8 for place in places if place // 8 == byte) for byte in range(-(-shape[1] // 8))]
        assert made["bitmask"][row].tolist() == bits
    for form in (made["shape"], made["shape"].ravel(), list(shape), shape):
        assert same_bits(s24.from_bitmask(made["compressed"], made["bitmask"], form), w)


def test_bitmask_errors():
    made = s24.to_bitmask(random24(3, 12))
    three, one = made["bitmask"].copy(), made["bitmask"].copy()
    three[2, 0] |= 0xF0
    one[1, 1] = 0b0100
    beyond = made["bitmask"].copy()
    beyond[0, 1] |= 0x30
    for change, message in (
        ({"bitmask": three}, "row 2, group 1 has 4 bits set, expected 2"),
        ({"bitmask": one}, "row 1, group 2 has 1 bits set, expected 2"),
        ({"bitmask": beyond}, "bits set beyond column 12"),
        ({"bitmask": made["bitmask"][:, :1]}, r"bitmask has shape \(3, 1\), expected \(3, 2\)"),
        ({"compressed": made["compressed"][:, :5]}, r"compressed has shape \(3, 5\), expected \(3, 6\)"),
        ({"compressed": made["compressed"][:2]}, r"compressed has shape \(2, 6\), expected \(3, 6\)"),
        ({"shape": [3, 16]}, r"compressed has shape \(3, 6\), expected \(3, 8\)"),
        ({"shape": [3, 10]}, r"shape is \[3, 10\], expected two sizes"),
        ({"shape": [36]}, "expected two sizes"),
        ({"shape": [-3, -12]}, "expected two sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            s24.from_bitmask(**{**made, **change})
    with pytest.raises(TypeError, match="bitmask has dtype float32"):
        s24.from_bitmask(made["compressed"], made["bitmask"].astype(np.float32), made["shape"])
    with pytest.raises(ValueError, match="multiple of 4"):
        s24.to_bitmask(random24(3, 6))
    with pytest.raises(ValueError, match="to_bitmask: w is not 2:4 sparse"):
        s24.to_bitmask(np.ones((3, 8), np.float32))


# ---- torch's CUTLASS form ----


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (96, 320), (160, 128)])
@pytest.mark.parametrize("name", ["float16", "bfloat16", "int8"])
def test_cutlass_is_torchs(shape, name):
    torch = pytest.importorskip("torch")
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    if name == "int8" and shape[1] % 64:
        return
    w = torch.from_numpy(of_dtype(random24(*shape), np.int8 if name == "int8" else np.float32)).to(getattr(torch, name))
    values, meta = conversions.sparse_semi_structured_from_dense_cutlass(w)
    ours, our_meta = s24.to_cutlass(w)
    assert our_meta.dtype == meta.dtype and torch.equal(our_meta, meta)
    assert ours.dtype == w.dtype and torch.equal(ours, values)
    assert torch.equal(s24.from_cutlass(values, meta), w)
    assert torch.equal(conversions.sparse_semi_structured_to_dense_cutlass(ours, our_meta), w)


@pytest.mark.parametrize(
    ("dtype", "word"), [(np.float16, np.int16), (ml_dtypes.bfloat16, np.int16), (np.int8, np.int32)]
)
def test_cutlass_by_the_definition(dtype, word):
    """The reorder written out for single words, without torch."""
    rows, columns = 96, 192
    w = of_dtype(random24(rows, columns), dtype)
    values, meta = s24.to_cutlass(w)
    expected, pairs = oracle.compress(w.astype(np.float64), oracle.torch_pads)
    assert meta.dtype == word and np.array_equal(values.astype(np.float64), expected)
    per_word, group = 2 * np.dtype(word).itemsize, 32 if word == np.int16 else 16
    flat = meta.ravel()
    for row in range(rows):
        for column in range(columns // 4 // per_word):
            nibbles = [oracle.NIBBLES[pair] for pair in pairs[row][column * per_word : (column + 1) * per_word]]
            number = sum(nibble << 4 * index for index, nibble in enumerate(nibbles))
            to_row, to_column = row // group * group + row % 8 * (group // 8) + row % group // 8, column
            if to_row % 2 != to_column % 2:
                to_row, to_column = (to_row + 1, to_column - 1) if to_column % 2 else (to_row - 1, to_column + 1)
            found = flat[to_column // 2 * 2 * rows + 2 * to_row + to_column % 2]
            assert int(found) % (1 << 4 * per_word) == number
    assert same_bits(s24.from_cutlass(values, meta), w)


def test_cutlass_errors():
    w = random24(32, 64).astype(np.float16)
    values, meta = s24.to_cutlass(w)
    broken = meta.copy()
    broken[3, 2] &= ~0xF0
    for call, message in (
        (lambda: s24.from_cutlass(values, broken), "is 0x0 .indices 0 and 0., expected one of"),
        (lambda: s24.from_cutlass(values, meta[:, :3]), "a word of meta for 8 of them"),
        (lambda: s24.from_cutlass(values[:16], meta[:16]), "rows a multiple of 32"),
        (lambda: s24.from_cutlass(values[:, :8], meta), "expected rows"),
        (lambda: s24.to_cutlass(w[:16]), "rows a multiple of 32 and columns of 32"),
        (lambda: s24.to_cutlass(w[:, :48]), "columns of 32 for float16"),
        (lambda: s24.to_cutlass(np.ones((32, 32), np.float16)), "is not 2:4 sparse: row 0, group 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="meta has dtype int32, expected int16"):
        s24.from_cutlass(values, meta.astype(np.int32))
    with pytest.raises(TypeError, match="w has dtype float32, expected float16, bfloat16, int8"):
        s24.to_cutlass(w.astype(np.float32))


# ---- compressed-tensors' marlin-24 ----

# (bits, columns, group size) → the first 16 digits of SHA-256 of weight_packed, scale_packed and meta: written by
# compressed-tensors from formula(64, columns) and the scales of marlin_scales().
MARLIN = {
    (4, 64, None): ("97d94c916b3771e1", "084fec7ce8ba65fb", "257057e254ac5314"),
    (8, 64, None): ("00f69623166c5060", "084fec7ce8ba65fb", "257057e254ac5314"),
    (4, 512, 128): ("3a82cf66389b2797", "075715bed271e8a0", "c3f118b5e39f55ea"),
    (8, 256, 128): ("02682d2d4d962462", "129efe15bda12167", "673cc3051ba78fa5"),
    (4, 256, 128): ("25289e7620315792", "129efe15bda12167", "673cc3051ba78fa5"),
}


def marlin_scales(groups: int) -> np.ndarray:
    return np.array([[(1 + (row + 3 * group) % 8) / 8 for group in range(groups)] for row in range(64)], np.float16)


@pytest.mark.parametrize("case", MARLIN, ids=str)
def test_marlin_written_by_compressed_tensors(case):
    bits, columns, group_size = case
    w, scales = formula(64, columns), marlin_scales(1 if group_size is None else columns // group_size)
    made = s24.to_marlin24(w, scales, bits=bits, group_size=group_size)
    digests = tuple(
        hashlib.sha256(made[name].tobytes()).hexdigest()[:16] for name in ("weight_packed", "scale_packed", "meta")
    )
    assert digests == MARLIN[case]
    assert made["weight_packed"].ravel()[:2].tolist() == (
        [-754974720, 1427049727] if bits == 4 else [1886416968, -2055506314]
    )
    spread = np.repeat(scales.astype(np.float32), columns // scales.shape[1], axis=1)
    expected = np.clip(np.rint(w / spread), -(1 << bits - 1), (1 << bits - 1) - 1) * spread
    assert np.array_equal(s24.from_marlin24(**made, bits=bits), expected)


@pytest.mark.parametrize(("bits", "columns", "group_size"), [(4, 32, None), (8, 384, 128), (4, 1024, 128)])
def test_marlin_own_scales(bits, columns, group_size):
    w = random24(128, columns)
    back = s24.from_marlin24(**s24.to_marlin24(w, bits=bits, group_size=group_size), bits=bits)
    assert back.dtype == np.float32
    largest = np.abs(w.reshape(128, -1, group_size or columns)).max(-1).repeat(group_size or columns, axis=1)
    step = largest / ((1 << bits - 1) - 1)
    # Half a step; rounding w and the scale to f16 moves a code's value by its size times 2^-11 each.
    assert (np.abs(back - w) <= 0.5 * step + 2 * 2.0**-11 * largest).all()
    assert not back[w == 0].any()


def test_marlin_errors():
    w = random24(64, 256)
    made = s24.to_marlin24(w, group_size=128)
    illegal = made["meta"].copy()
    illegal[0, 0] = 0
    for call, message in (
        (lambda: s24.to_marlin24(w, bits=3), "bits is 3, expected 4 or 8"),
        (lambda: s24.to_marlin24(w, group_size=64), "group_size is 64, expected None or 128"),
        (lambda: s24.to_marlin24(w[:32]), "rows a multiple of 64"),
        (lambda: s24.to_marlin24(w[:, :192], group_size=128), "columns of 128"),
        (lambda: s24.to_marlin24(w, np.ones((64, 3), np.float16)), r"scale has shape \(64, 3\), expected \(64, 1\)"),
        (lambda: s24.to_marlin24(w * 1e6), "beyond the range of f16"),
        (lambda: s24.to_marlin24(np.ones((64, 32), np.float32)), "not 2:4 sparse"),
        (lambda: s24.from_marlin24(**{**made, "meta": illegal}), "expected one of 0x4"),
        (lambda: s24.from_marlin24(**{**made, "meta": made["meta"][:4]}), "weight_packed has shape"),
        (lambda: s24.from_marlin24(**made, bits=8), "weight_packed has shape"),
        (
            lambda: s24.from_marlin24(**{**made, "scale_packed": made["scale_packed"].repeat(2, 0)}),
            "has 4 groups for 256",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# ---- torch in, torch out ----


def test_torch_round_trips():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        w = torch.from_numpy(random24(64, 64)).to(dtype)
        plain = w.to(torch.float32)
        values, metadata = s24.compress24(w)
        assert values.dtype == dtype and metadata.dtype == torch.uint8
        assert torch.equal(s24.decompress24(values, metadata).to(torch.float32), plain)
        made = s24.to_bitmask(w)
        assert made["shape"].dtype == torch.int64 and made["compressed"].dtype == dtype
        assert torch.equal(s24.from_bitmask(**made).to(torch.float32), plain)
    made = s24.to_marlin24(torch.from_numpy(formula(64, 64)))
    assert made["scale_packed"].dtype == torch.float16 and made["weight_packed"].dtype == torch.int32
    assert isinstance(s24.from_marlin24(**made), torch.Tensor)
