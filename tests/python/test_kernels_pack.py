"""pack and unpack: the values each format stores, against the oracle's roundings."""

import ml_dtypes
import numpy as np
import pytest

import fastffn as ff
from kernel_support import DTYPES, FORMATS, arithmetic, normal, pack, prepare_weights
from reference import formats as oracle

formats = pytest.mark.parametrize("fmt", FORMATS)
floats = pytest.mark.parametrize("fmt", ["f32", "f16", "bf16"])
SHAPES = ((1, 1), (1, 300), (300, 1), (15, 17), (16, 64), (33, 65), (100, 130), (257, 31))


def unpacked(packed, dtype="f32"):
    return np.asarray(ff.unpack(packed, dtype))


@floats
@pytest.mark.parametrize("source", ["f32", "f16", "bf16", "f64"])
def test_values(fmt, source):
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        w = rng.standard_normal(shape).astype(np.float32)
        w = w.astype(np.float64) if source == "f64" else w.astype(DTYPES[source])
        np.testing.assert_array_equal(unpacked(ff.pack(w, fmt)), oracle.weight_values(w, fmt).astype(np.float32))


@floats
def test_every_exponent_and_rounding(fmt):
    """All bit patterns of the upper 16 bits of f32, with low bits that round down, up, and exactly half."""
    high = np.arange(1 << 16, dtype=np.uint32) << 16
    for low in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        w = (high | low).view(np.float32).reshape(256, 256)
        limit = {"f16": 65520, "bf16": 3.39617753e38}.get(fmt, np.inf)  # refused: see test_refuses_what_it_cannot_hold
        w = np.where(np.isfinite(w) & (np.abs(w) >= np.float32(limit)), np.float32(0), w)
        with np.errstate(invalid="ignore"):
            expected = oracle.weight_values(w, fmt).astype(np.float32)
        np.testing.assert_array_equal(unpacked(ff.pack(w, fmt)), expected)


def test_refuses_what_it_cannot_hold():
    w = np.ones((20, 40), np.float32)
    for fmt, largest, rounds_to_it, beyond in (
        ("f16", 65504, (65519,), (65520, -1e9)),
        ("bf16", float.fromhex("0x1.fep127"), (3.39e38,), (3.3961776e38, -3.4e38)),
    ):
        for value in rounds_to_it:
            w[3, 5] = value
            assert unpacked(ff.pack(w, fmt))[3, 5] == largest
        for value in beyond:
            w[3, 5] = value
            with pytest.raises(ValueError, match="row 3.*beyond"):
                ff.pack(w, fmt)


def test_refuses_f64_beyond_f32():
    w = np.ones((20, 40))
    w[7, 11] = 1e300
    for fmt in ff.formats():
        with pytest.raises(ValueError, match="row 7.*beyond the range of f32"):
            ff.pack(w, fmt)


@floats
def test_f64_goes_through_f32(fmt):
    w = np.random.default_rng(9).standard_normal((33, 50))
    w[0, 0] = 1 + 2.0**-8 + 2.0**-40  # f32 does not see the last term
    np.testing.assert_array_equal(ff.pack(w, fmt), ff.pack(w.astype(np.float32), fmt))


def test_int8_codes():
    """Codes are those of round-to-nearest-even on w / scale in f32 arithmetic: scale = max|w| / 127."""
    rng = np.random.default_rng(2)
    for shape in SHAPES:
        w = normal(rng, shape)
        scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)
        values = unpacked(ff.pack(w, "int8"))
        codes = np.rint(w / scale)
        np.testing.assert_array_equal(values, codes * scale)
        # And float64 agrees, but where w / scale is within an f32 rounding of a half.
        exact, exact_scale = oracle.quantise_rows(w)
        moved = np.abs(values / exact_scale - exact) > 0.5
        distance = np.abs(np.abs(w / exact_scale) % 1 - 0.5)
        assert (distance[moved] < 1e-4).all()


def test_int8_extremes():
    w = np.zeros((6, 40), np.float32)
    w[1] = 2.0**-149  # the scale of this row is not representable
    w[2] = 3e38
    w[3, ::2], w[3, 1::2] = 127, -127
    w[4, 0], w[4, 1:] = 127, 63.5  # halves round to even: 64
    w[5] = np.linspace(-1, 1, 40)
    values = unpacked(ff.pack(w, "int8"))
    assert (values[0] == 0).all()
    assert (np.abs(values[1]) <= 2.0**-142).all()
    np.testing.assert_allclose(values[2], w[2], rtol=1e-6)
    np.testing.assert_array_equal(values[3], w[3])
    np.testing.assert_array_equal(values[4], [127] + [64] * 39)
    assert np.abs(values[5] - w[5]).max() <= 0.5 / 127 * 1.001


@pytest.mark.parametrize("fmt", oracle.CODES)
def test_code_values(fmt):
    """The oracle's weights, of the same codes; a scale per matrix or row may be one f32 rounding of its sum away."""
    rng = np.random.default_rng(10)
    for shape in SHAPES:
        w = normal(rng, shape, scale=float(np.exp(rng.uniform(-6, 3))))
        w[0] = 0
        w[-1] = np.abs(w[-1])  # minima of zero points are 0 then
        np.testing.assert_allclose(unpacked(pack(w, fmt)), oracle.weight_values(w, fmt), rtol=2.0**-23, atol=0)


@formats
@pytest.mark.parametrize("dtype", DTYPES)
def test_unpack_dtypes(fmt, dtype):
    w = normal(np.random.default_rng(3), (33, 50))
    packed = pack(w, fmt)
    out = unpacked(packed, dtype)
    assert out.dtype == DTYPES[dtype] and out.shape == (33, 50)
    np.testing.assert_array_equal(out, unpacked(packed).astype(DTYPES[dtype]))


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt not in oracle.CODES])  # whose scales are no fixed points
def test_pack_is_a_projection(fmt):
    """Packing what was unpacked gives the same bytes: nothing is lost twice."""
    packed = pack(normal(np.random.default_rng(4), (33, 50)), fmt)
    again = pack(unpacked(packed), fmt)
    if arithmetic(fmt) == "int8":  # the scale is computed again from 127 · scale, which may round
        np.testing.assert_allclose(unpacked(again), unpacked(packed), rtol=1e-6)
    else:
        np.testing.assert_array_equal(again, packed)


@formats
def test_strides(fmt):
    rng = np.random.default_rng(5)
    w = normal(rng, (40, 66))
    w[::2, ::3] = prepare_weights(fmt, w[::2, ::3])
    expected = pack(w[::2, ::3].copy(), fmt)
    for view in (w[::2, ::3], np.asfortranarray(w[::2, ::3]), w[::2, ::3].copy()[::-1, ::-1].copy()[::-1, ::-1]):
        np.testing.assert_array_equal(pack(view, fmt), expected)
    transposed = w.T.copy()
    np.testing.assert_array_equal(pack(transposed.T, fmt), pack(w, fmt))


@formats
def test_stacks(fmt):
    w = normal(np.random.default_rng(6), (3, 20, 33))
    out = unpacked(pack(w, fmt))
    assert out.shape == w.shape
    for i in range(3):
        np.testing.assert_array_equal(out[i], unpacked(pack(w[i], fmt)))


@formats
def test_deterministic(fmt):
    w = normal(np.random.default_rng(7), (300, 200))
    first = pack(w, fmt)
    try:
        for threads in (1, 2, 5):
            ff.set_num_threads(threads)
            np.testing.assert_array_equal(pack(w, fmt), first)
    finally:
        ff.set_num_threads(0)


def test_bf16_oracle_is_ml_dtypes():
    bits = np.random.default_rng(8).integers(0, 2**32, 100_000, dtype=np.uint64).astype(np.uint32)
    w = bits.view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = w.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(oracle.round_bf16(w).astype(np.float32), expected)
