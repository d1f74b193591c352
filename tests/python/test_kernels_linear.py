"""linear against the float64 oracle."""

import numpy as np
import pytest

import fastffn as ff
from kernel_support import (
    DTYPES,
    FORMATS,
    SMALL,
    arithmetic,
    check,
    normal,
    pack,
    packed_values,
    prepare_weights,
)
from reference import tolerance
from reference.formats import CODES

formats = pytest.mark.parametrize("fmt", FORMATS)
EDGES = (1, 15, 17, 64, 257) if SMALL else (1, 3, 15, 16, 17, 32, 63, 64, 65, 130, 255, 257)


def check_linear(fmt, x, out_features, bias=None, seed=0):
    rng = np.random.default_rng([seed, out_features])
    depth = x.shape[-1]
    w = pack(normal(rng, (out_features, depth), scale=depth**-0.5), fmt)
    b = None if bias is None else normal(rng, out_features, bias)
    expected = tolerance.linear(
        tolerance.Bounded.exact(x), packed_values(w), fmt, None if b is None else b.astype(np.float64)
    )
    check(ff.linear(x, w) if b is None else ff.linear(x, w, b), expected, str(x.dtype))


@formats
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [None, "f32", "bf16"])
def test_dtypes(fmt, dtype, bias):
    rng = np.random.default_rng(1)
    for tokens in (1, 2, 7, 16, 35, 130):
        check_linear(fmt, normal(rng, (tokens, 77), dtype), 83, bias)


@formats
@pytest.mark.parametrize("tokens", [1, 4, 40])
def test_dimensions(fmt, tokens):
    rng = np.random.default_rng(2)
    for depth in EDGES:
        for out_features in EDGES:
            check_linear(fmt, normal(rng, (tokens, depth)), out_features, "f32", seed=depth)


@formats
@pytest.mark.parametrize("tokens", [1, 20])
def test_deep(fmt, tokens):
    """Long reductions, and outputs that are not a multiple of anything."""
    check_linear(fmt, normal(np.random.default_rng(3), (tokens, 2050 if SMALL else 11008), "bf16"), 49)


@formats
def test_one_dimension(fmt):
    check_linear(fmt, normal(np.random.default_rng(4), (50,)), 21, "f32")


@formats
def test_every_weight_counts(fmt):
    """A one in one place, and nothing else: each weight is multiplied by its own element of x, exactly."""
    depth, out_features = 70, 35
    rng = np.random.default_rng(5)
    w = pack(normal(rng, (out_features, depth)), fmt)
    values = packed_values(w)
    x = np.eye(depth, dtype=np.float32)
    y = ff.linear(x, w)
    if arithmetic(fmt) == "int8":
        # scale(x) = 1 / 127, code 127: 127 · (1 / 127) is not exactly 1 in f32.
        np.testing.assert_allclose(y, values.T, rtol=4 * tolerance.U)
    else:
        np.testing.assert_array_equal(y, values.T)
    # One token at a time takes the other regime.
    rows = np.stack([ff.linear(x[i : i + 1], w)[0] for i in range(depth)])
    np.testing.assert_allclose(rows, values.T, rtol=4 * tolerance.U if arithmetic(fmt) == "int8" else 0)


@pytest.mark.parametrize("fmt", [fmt for fmt in FORMATS if fmt not in CODES])  # theirs: test_kernels_codes.py
def test_small_integers_are_exact(fmt):
    """Sums of small integers are exact in every format, in any order: no tolerance hides a wrong element."""
    rng = np.random.default_rng(6)
    for tokens in (1, 5, 16, 50):
        x = rng.integers(-7, 8, (tokens, 130)).astype(np.float32)
        w = rng.integers(-7, 8, (67, 130)).astype(np.float32)
        # int8 is exact when the largest of each row is 127 steps of 1.
        x[:, 0] = w[:, 0] = 127
        w = prepare_weights(fmt, w)
        y = ff.linear(x, pack(w, fmt))
        np.testing.assert_array_equal(y, x.astype(np.float64) @ w.astype(np.float64).T)
