"""Values and memory layouts at the edge: NaN, infinities, huge, tiny and zero values; strides, alignment."""

import numpy as np
import pytest

import fastffn as ff
from kernel_support import DTYPES, FORMATS, Layer, arithmetic, check, normal, pack, packed_values
from reference import tolerance
from reference.formats import CODES, INT8_SMALLEST_ROW, SPARSE24, kept_positions

formats = pytest.mark.parametrize("fmt", FORMATS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
tokens_list = pytest.mark.parametrize("tokens", [1, 5, 16, 40])


@formats
@dtypes
@tokens_list
@pytest.mark.parametrize("activation", ["identity", "relu", "relu2", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_nan_stays_in_its_token(fmt, dtype, tokens, activation, gated):
    layer = Layer(fmt, 50, 70, gated, "f32", activation)
    x = normal(np.random.default_rng(1), (tokens, 50), dtype)
    expected = layer(x)
    for bad in sorted({0, tokens // 2, tokens - 1}):
        for value in (np.nan, -np.nan):
            poisoned = x.copy()
            poisoned[bad, 17] = value
            y = layer(poisoned)
            assert np.isnan(y[bad].astype(np.float32)).all()
            others = np.arange(tokens) != bad
            np.testing.assert_array_equal(y[others].view(np.uint8), expected[others].view(np.uint8))


def infinite_products(fmt, values, infinities):
    """Sums of infinite activations times their weights; sparse24 skips the positions that it does not keep."""
    kept = kept_positions(values) if fmt in SPARSE24 else np.ones(values.shape, bool)
    with np.errstate(invalid="ignore"):
        return sum(np.where(kept[:, k], infinity * values[:, k], 0) for k, infinity in infinities.items())


@formats
@dtypes
@tokens_list
def test_infinity_stays_in_its_token(fmt, dtype, tokens):
    rng = np.random.default_rng(2)
    w = pack(normal(rng, (37, 50)), fmt)
    values = packed_values(w)
    x = normal(rng, (tokens, 50), dtype)
    expected = ff.linear(x, w)
    x[tokens - 1, 49] = -np.inf
    y = ff.linear(x, w)
    np.testing.assert_array_equal(y[:-1].view(np.uint8), expected[:-1].view(np.uint8))
    last = y[-1].astype(np.float64)
    if arithmetic(fmt) == "int8":
        assert np.isnan(last).all()
    else:
        reached = kept_positions(values)[:, 49] if fmt in SPARSE24 else np.ones(37, bool)
        np.testing.assert_array_equal(last[reached], infinite_products(fmt, values, {49: -np.inf})[reached])
        assert np.isfinite(last[~reached]).all()
    x[tokens - 1, 3] = np.inf  # where the signs of the two products differ, infinity minus infinity is NaN
    last = ff.linear(x, w)[-1].astype(np.float64)
    if arithmetic(fmt) == "int8":
        assert np.isnan(last).all()
    else:
        reached = kept_positions(values)[:, [3, 49]].any(1) if fmt in SPARSE24 else np.ones(37, bool)
        expected = infinite_products(fmt, values, {49: -np.inf, 3: np.inf})
        np.testing.assert_array_equal(last[reached], expected[reached])
        assert np.isfinite(last[~reached]).all()


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16"])
def test_nan_and_infinite_weights(fmt):
    rng = np.random.default_rng(3)
    w = normal(rng, (20, 40))
    w[3, 5], w[7, 11] = np.nan, np.inf
    packed = pack(w, fmt)
    for tokens in (1, 20):
        x = np.abs(normal(rng, (tokens, 40))) + 0.5
        y = ff.linear(x, packed)
        assert np.isnan(y[:, 3]).all()
        assert (y[:, 7] == np.inf).all()
        assert np.isfinite(np.delete(y, [3, 7], axis=1)).all()


def test_int8_refuses_nonfinite_weights():
    w = np.ones((20, 40), np.float32)
    for value in (np.nan, np.inf, -np.inf):
        w[7, 11] = value
        with pytest.raises(ValueError, match="row 7"):
            ff.pack(w, "int8")


@formats
@tokens_list
def test_zero_rows(fmt, tokens):
    layer = Layer(fmt, 50, 70, True, "f32", "silu")
    x = normal(np.random.default_rng(4), (tokens, 50))
    x[0] = 0
    layer.check(x)
    w = np.asarray(normal(np.random.default_rng(5), (33, 50)))
    w[1] = 0
    bias = normal(np.random.default_rng(6), 33)
    y = ff.linear(x, pack(w, fmt), bias)
    np.testing.assert_array_equal(y[0], bias)
    np.testing.assert_array_equal(y[:, 1], np.broadcast_to(bias[1], tokens))
    assert (ff.linear(-x[:1] * 0, pack(w, fmt)) == 0).all()


@formats
@tokens_list
@pytest.mark.parametrize("exponent", [-149, -140, -127, -126, -125, -120, -100, -60, -30, 30, 60, 100, 120])
def test_magnitudes(fmt, tokens, exponent):
    """x from denormal to huge: relative accuracy does not depend on the magnitude, down to where f32 itself ends."""
    rng = np.random.default_rng(7)
    w = pack(normal(rng, (21, 40), scale=0.2), fmt)
    x = np.ldexp(normal(rng, (tokens, 40)), exponent).astype(np.float32)
    check(ff.linear(x, w), tolerance.linear(tolerance.Bounded.exact(x), packed_values(w), fmt), "f32")


@tokens_list
@pytest.mark.parametrize("exponent", [-149, -130, -127, -126, -125, -121, -120, -117, -115, -110])
def test_int8_row_with_a_tiny_maximum(tokens, exponent):
    """Zeros stay zeros where 127 / max|x| overflows."""
    x = np.zeros((tokens, 64), np.float32)
    x[:, 5] = np.ldexp(1.0, exponent)
    w = np.full((16, 64), 127, np.float32)
    w[:, 5] = 1
    y = ff.linear(x, ff.pack(w, "int8"))
    expected = 2.0**exponent if 2.0**exponent >= INT8_SMALLEST_ROW else 0
    np.testing.assert_allclose(y, np.float64(expected), rtol=0.02)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt not in CODES])  # which cannot hold these weights
@tokens_list
def test_one_huge_element(fmt, tokens):
    rng = np.random.default_rng(8)
    w = np.zeros((20, 40), np.float32)
    w[np.arange(20), np.arange(20) * 2] = 1
    packed = pack(w, fmt)
    x = np.zeros((tokens, 40), np.float32)
    x[:, ::2] = 2.0**126 * rng.choice([-1.0, 1.0, 1.5], (tokens, 20))
    y = ff.linear(x, packed)
    np.testing.assert_allclose(y, x[:, ::2], rtol=0.004 if arithmetic(fmt) == "int8" else 0)
    # Beyond the range of the output's dtype there is only infinity.
    y = ff.linear(x.astype(DTYPES["bf16"]), pack(w * 4, fmt)).astype(np.float32)
    assert np.isinf(y).all()
    y = ff.linear(np.full((tokens, 40), 60000, np.float16), pack(w * 2, fmt))
    assert (y == np.inf).all()


def test_int8_depth_beyond_the_sum_of_int32():
    """127 · 127 · 140000 exceeds 2^31: refused when packed, or summed right."""
    depth = 140_000
    w = np.ones((3, depth), np.float32)
    try:
        packed = ff.pack(w, "int8")
    except ValueError as error:
        assert "in_features" in str(error) or str(depth) in str(error)
        return
    for tokens in (1, 20):
        np.testing.assert_allclose(ff.linear(np.ones((tokens, depth), np.float32), packed), depth, rtol=1e-5)


@formats
@dtypes
@tokens_list
def test_strided_rows(fmt, dtype, tokens):
    layer = Layer(fmt, 50, 70, True, dtype, "silu")
    rng = np.random.default_rng(9)
    x = normal(rng, (tokens, 50), dtype)
    expected = layer(x)
    for padding in (1, 7, 64):
        wide = normal(rng, (tokens, 50 + padding), dtype)
        wide[:, :50] = x
        out_wide = np.full((tokens, 50 + padding), 7, DTYPES[dtype])
        y = layer(wide[:, :50], out=out_wide[:, :50])
        np.testing.assert_array_equal(np.ascontiguousarray(y).view(np.uint8), expected.view(np.uint8))
        assert (out_wide[:, 50:] == 7).all()


@formats
@pytest.mark.parametrize("tokens", [(3, 5), (2, 20), (1, 1), (4, 1)])
def test_leading_dimensions_that_do_not_collapse(fmt, tokens):
    layer = Layer(fmt, 50, 70, True, "f32", "silu")
    rng = np.random.default_rng(10)
    a, b = tokens
    memory = normal(rng, (b + 3, a + 2, 60))
    x = memory[:b, :a, 4:54].transpose(1, 0, 2)
    expected = layer(np.ascontiguousarray(x))
    y = layer(x)
    assert y.shape == (a, b, 50)
    np.testing.assert_array_equal(y, expected)
    out = np.full((b + 1, a + 1, 55), np.float32(3))
    view = out[:b, :a, 5:].transpose(1, 0, 2)
    assert layer(x, out=view) is view
    np.testing.assert_array_equal(view, expected)
    assert (out[:, :, :5] == 3).all() and (out[b:] == 3).all() and (out[:, a:] == 3).all()
    broadcast = np.broadcast_to(x[:1], (4, b, 50))  # stride 0
    np.testing.assert_array_equal(layer(broadcast)[3], layer(np.ascontiguousarray(broadcast))[3])


def misaligned(array, offset):
    """A copy of the array that begins `offset` bytes past a 64-byte boundary."""
    memory = np.zeros(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    assert copy.ctypes.data % 64 == offset
    return copy


@formats
@dtypes
@pytest.mark.parametrize("tokens", [1, 20])
def test_any_alignment(fmt, dtype, tokens):
    layer = Layer(fmt, 50, 70, True, dtype, "silu")
    x = normal(np.random.default_rng(11), (tokens, 50), dtype)
    expected = layer(x)
    packed, biases = dict(layer.packed), dict(layer.biases)
    for offset in (1, 2, 4, 31, 33, 63):  # odd: not even aligned to an element
        layer.packed = {n: misaligned(p, offset) for n, p in packed.items()}
        layer.biases = {n: misaligned(b, offset) for n, b in biases.items()}
        y = layer(misaligned(x, offset), out=misaligned(np.zeros_like(x), offset))
        np.testing.assert_array_equal(np.ascontiguousarray(y).view(np.uint8), expected.view(np.uint8))
