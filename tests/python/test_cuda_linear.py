"""linear and ffn on devices against the float64 oracle, in every format that devices have; see cuda_support.py."""

import numpy as np
import pytest

import fastffn as ff
from cuda_support import DEVICE_FORMATS, DTYPES
from kernel_support import ACTIVATIONS, SMALL, check, normal, packed_values
from reference import tolerance
from reference.formats import pack_arguments, prepare_weights

formats = pytest.mark.parametrize("fmt", DEVICE_FORMATS)
TOKENS = (1, 5, 20) if SMALL else (1, 2, 7, 16, 17, 35)
EDGES = (1, 17, 130) if SMALL else (1, 15, 17, 64, 65, 130, 257)


def on_cpu(fmt, w):
    name, options = pack_arguments(fmt)
    return ff.pack(prepare_weights(fmt, w), name, **options)


def check_linear(cuda, fmt, x, out_features, bias=None, seed=0):
    rng = np.random.default_rng([seed, out_features])
    depth = x.shape[-1]
    w = normal(rng, (out_features, depth), scale=depth**-0.5)
    b = None if bias is None else normal(rng, out_features, bias)
    expected = tolerance.linear(
        tolerance.Bounded.exact(x), packed_values(on_cpu(fmt, w)), fmt, None if b is None else b.astype(np.float64)
    )
    y = ff.linear(cuda.put(x), cuda.weight(w, fmt), None if b is None else cuda.put(b))
    check(cuda.get(y), expected, str(x.dtype))


@formats
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [None, "f32", "bf16"])
def test_linear_dtypes(cuda, fmt, dtype, bias):
    if dtype not in cuda.dtypes or bias not in (None, *cuda.dtypes):
        pytest.skip(f"{cuda.name} has no arrays of these")
    rng = np.random.default_rng(1)
    for tokens in TOKENS:
        check_linear(cuda, fmt, normal(rng, (tokens, 77), dtype), 83, bias)


@formats
@pytest.mark.parametrize("tokens", [1, 20])
def test_linear_dimensions(cuda, fmt, tokens):
    rng = np.random.default_rng(2)
    for depth in EDGES:
        for out_features in EDGES:
            check_linear(cuda, fmt, normal(rng, (tokens, depth)), out_features, "f32", seed=depth)


@formats
def test_linear_deep(cuda, fmt):
    check_linear(cuda, fmt, normal(np.random.default_rng(3), (3, 2050)), 49)


@formats
@pytest.mark.parametrize("shape", [(50,), (0, 50), (2, 0, 50), (2, 3, 50)])
def test_shapes(cuda, fmt, shape):
    check_linear(cuda, fmt, normal(np.random.default_rng(4), shape), 21, "f32")


@formats
def test_strided_rows(cuda, fmt):
    rng = np.random.default_rng(5)
    values, w = normal(rng, (24, 96)), normal(rng, (33, 50), scale=0.1)
    packed = cuda.weight(w, fmt)
    for rows, cols in ((slice(0, 24, 3), slice(7, 57)), (slice(1, 9), slice(0, 50)), (slice(2, 3), slice(3, 53))):
        x = values[rows, cols]
        expected = tolerance.linear(tolerance.Bounded.exact(x), packed_values(on_cpu(fmt, w)), fmt)
        check(cuda.get(ff.linear(cuda.strided(values, rows, cols), packed)), expected, "f32")


@formats
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("biased", [False, True], ids=["", "bias"])
def test_ffn(cuda, fmt, gated, biased):
    rng = np.random.default_rng(6)
    d_model, d_ff = 70, 101
    shapes = {"w_up": (d_ff, d_model), "w_down": (d_model, d_ff), "w_gate": (d_ff, d_model)}
    if not gated:
        del shapes["w_gate"]
    plain = {name: normal(rng, shape, scale=shape[1] ** -0.5) for name, shape in shapes.items()}
    biases = {f"b{name[1:]}": normal(rng, shape[0]) for name, shape in shapes.items()} if biased else {}
    values = {name: packed_values(on_cpu(fmt, w)) for name, w in plain.items()}
    packed = {name: cuda.weight(w, fmt) for name, w in plain.items()}
    for activation in ("gelu", "silu") if SMALL else ACTIVATIONS:
        for tokens in (1, 19):
            x = normal(rng, (tokens, d_model))
            expected = tolerance.ffn(
                x.astype(np.float64), values["w_up"], values["w_down"], fmt, w_gate=values.get("w_gate"),
                activation=activation, **{name: b.astype(np.float64) for name, b in biases.items()},
            )  # fmt: skip
            on_device = {name: cuda.put(b) for name, b in biases.items()}
            y = ff.ffn(cuda.put(x), **packed, **on_device, activation=activation)
            check(cuda.get(y), expected, "f32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_written_where_they_are_asked(cuda, dtype):
    if dtype not in cuda.dtypes:
        pytest.skip(f"{cuda.name} has no arrays of it")
    rng = np.random.default_rng(7)
    x, w = normal(rng, (4, 40), dtype), normal(rng, (30, 40))
    packed = cuda.weight(w, "bf16")
    out = cuda.full((4, 30), np.nan, dtype)
    assert ff.linear(cuda.put(x), packed, out=out) is out
    y = ff.linear(cuda.put(x), packed)
    np.testing.assert_array_equal(cuda.get(out).view(np.uint8), cuda.get(y).view(np.uint8))
