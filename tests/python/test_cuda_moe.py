"""moe on devices against the float64 oracle: every format that devices have, routes of every shape; see cuda_support.py."""

from dataclasses import fields

import numpy as np
import pytest

import fastffn as ff
from cuda_support import DEVICE_FORMATS, DTYPES
from kernel_support import ACTIVATIONS, SMALL, check, normal
from moe_support import SPECIAL_KINDS, Mixture, Stack, one_stack, random_route
from reference import tolerance
from reference.activations import ACTIVATIONS as ACTIVATE
from reference.ffn import linear

formats = pytest.mark.parametrize("fmt", DEVICE_FORMATS)
TOKENS = (0, 1, 12, 24) if SMALL else (0, 1, 2, 7, 12, 16, 24, 70)
ROUNDS_ABOVE = 16  # tokens: then experts' outputs are bf16 for bf16 results


def put(cuda, value):
    """Arguments of moe on the device."""
    if isinstance(value, list):
        return [put(cuda, one) for one in value]
    if isinstance(value, ff.SharedExperts | ff.SpecialExperts):
        names = [field.name for field in fields(value) if field.name != "kinds"]
        moved = {name: put(cuda, getattr(value, name)) for name in names}
        return type(value)(**({"kinds": value.kinds} if hasattr(value, "kinds") else {}), **moved)
    if isinstance(value, np.ndarray) and value.dtype == np.uint8:
        return ff.to_device(value, cuda.device())
    return cuda.put(value) if isinstance(value, np.ndarray) else value


def on_device(cuda, layer, x, ids, weights, **keywords):
    arguments = {name: put(cuda, value) for name, value in layer.keywords.items()}
    return ff.moe(
        x if keywords.pop("is_there", False) else cuda.put(x), cuda.put(ids),
        None if weights is None else cuda.put(weights), **arguments, activation=layer.activation,
        weights_on_input=layer.weights_on_input, **keywords,
    )  # fmt: skip


def f16_hidden_error(layer, x, ids, weights):
    """What it costs to keep hidden activations in f16, as devices do for f16 weights and f16 x."""
    x = x.astype(np.float64)
    error = np.zeros((len(x), layer.experts[0].w_down.shape[0]))
    for e, expert in enumerate(layer.experts):
        picked = (np.abs(weights) * (ids == e)).sum(axis=1)[:, None]
        h = linear(x, expert.w_up, expert.b_up)
        if expert.w_gate is None:
            h = ACTIVATE[layer.activation](h)
        else:
            h *= ACTIVATE[layer.activation](linear(x, expert.w_gate, expert.b_gate))
        error += picked * ((2.0**-11 * np.abs(h) + 2.0**-25) @ np.abs(expert.w_down).T)
    return error


def bounded(layer, x, ids, weights):
    """The oracle's bound, with the roundings that only devices make: of hidden activations, and of experts' outputs."""
    expected = layer.bounded(x, ids, weights)
    if x.dtype == np.float16 and layer.stacks[0].fmt in ("f16", "sparse24-f16"):
        return tolerance.Bounded(expected.value, expected.error + f16_hidden_error(layer, x, ids, weights))
    if str(x.dtype) != "bfloat16" or len(x) <= ROUNDS_ABOVE:
        return expected
    error = expected.error.copy()
    none = np.full((len(x), 1), -1, np.int32)
    rest = np.abs(layer.bounded(x, none, None).value)  # of shared experts
    for j in range(ids.shape[1]):
        one = layer.bounded(x, ids[:, j : j + 1], None if weights is None else weights[:, j : j + 1])
        error += 2.0**-8 * (np.abs(one.value) + one.error + rest)
    return tolerance.Bounded(expected.value, error + 2.0**-8 * rest)


def problem(layer, tokens, k, dtype="f32", seed=1):
    rng = np.random.default_rng([seed, tokens, k])
    x = normal(rng, (tokens, layer.stacks[0].d_model), dtype)
    return x, *random_route(rng, tokens, k, layer.ids_end, zipf=tokens > 16)


def check_layer(cuda, layer, x, ids, weights, **keywords):
    y = on_device(cuda, layer, x, ids, weights, **keywords)
    check(cuda.get(y), bounded(layer, x, ids, weights), str(x.dtype))


def has_stacks(cuda, fmt):
    """Whether stacks of the format have kernels; the error says so by name where not."""
    stack = Stack(fmt, 2, 64, 64)
    try:
        on_device(cuda, Mixture([stack]), np.zeros((1, 64), np.float32), np.zeros((1, 1), np.int32), None)
    except RuntimeError as error:
        assert "no CUDA kernels" in str(error)
        return False
    return True


@formats
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
def test_every_kind(cuda, fmt, dtype, gated):
    if dtype not in cuda.dtypes:
        pytest.skip(f"{cuda.name} has no arrays of it")
    if not has_stacks(cuda, fmt):
        pytest.skip("no kernels for stacks")
    layer = one_stack(fmt, 5, 50, 70, gated=gated, bias="f32" if gated else None)
    for tokens in TOKENS:
        check_layer(cuda, layer, *problem(layer, tokens, 3, dtype))


def test_dense_formats_have_stacks(cuda):
    assert all(has_stacks(cuda, fmt) for fmt in ("f32", "f16", "bf16", "int8", "sparse24-bf16"))


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "swiglu_clamped"])
def test_activations(cuda, activation):
    layer = one_stack("bf16", 4, 40, 48, bias="f32", activation=activation)
    for tokens in (1, 20):
        x, ids, weights = problem(layer, tokens, 2)
        check_layer(cuda, layer, x * 3, ids, weights)


@pytest.mark.parametrize("weights_on_input", [False, True], ids=["", "on_input"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_shared_and_special(cuda, weights_on_input, dtype):
    layer = Mixture(
        [Stack("f32", 3, 40, 30), Stack("bf16", 2, 40, 50)], shared=[Stack("bf16", 2, 40, 24), Stack("f32", 1, 40, 20)],
        gated_shared=True, special=SPECIAL_KINDS, weights_on_input=weights_on_input,
    )  # fmt: skip
    for tokens in (2, 16):
        x, ids, weights = problem(layer, tokens, 5, dtype)
        check_layer(cuda, layer, x, ids, weights)
        check_layer(cuda, layer, x, ids, None)


@pytest.mark.parametrize("ids_dtype", [np.int32, np.int64])
def test_strides_load_and_out(cuda, ids_dtype):
    layer = one_stack("bf16", 6, 40, 48, special=("zero", "copy"))
    x, ids, weights = problem(layer, 10, 4)
    ids[3, 1] = -1
    wide = np.zeros((10, 50), np.float32)
    wide[:, 5:45] = x
    load = cuda.put(np.full(8, -1, np.int64))
    out = cuda.full((10, 40), np.nan, "f32")
    y = on_device(
        cuda, layer, cuda.strided(wide, slice(0, 10), slice(5, 45)), ids.astype(ids_dtype), weights, load=load, out=out,
        is_there=True,
    )  # fmt: skip
    assert y is out
    check(cuda.get(out), layer.bounded(x, ids, weights), "f32")
    np.testing.assert_array_equal(cuda.get(load), np.bincount(ids[ids >= 0], minlength=8))


@pytest.mark.parametrize("fmt", ["f32", "bf16"])
def test_sub_norm(cuda, fmt):
    layer = one_stack(fmt, 4, 32, 24)
    gamma = normal(np.random.default_rng(7), (4, 24))
    for tokens in (3, 20):
        x, ids, weights = problem(layer, tokens, 2)
        y = cuda.get(on_device(cuda, layer, x, ids, weights, sub_norm=cuda.put(gamma), sub_norm_eps=1e-3))
        expected = layer(x, ids, weights, sub_norm=gamma, sub_norm_eps=1e-3)
        # Hidden activations on the edge between two bf16 numbers fall either way.
        np.testing.assert_allclose(y, expected, rtol=0, atol=(1e-5 if fmt == "f32" else 5e-3) * np.abs(expected).max())


def test_ids_that_name_nothing(cuda):
    layer = one_stack("f32", 4, 16, 8)
    x, ids, weights = problem(layer, 3, 2)
    without = ids.copy()
    without[:, 0] = -1
    ids[:, 0] = (4, -5, 2**31 - 1)
    a, b = (cuda.get(on_device(cuda, layer, x, picked, weights)) for picked in (ids, without))
    np.testing.assert_array_equal(a, b)


def test_batches_of_more_dimensions(cuda):
    layer = one_stack("bf16", 4, 24, 16)
    x, ids, weights = problem(layer, 6, 2)
    flat = cuda.get(on_device(cuda, layer, x, ids, weights))
    y = on_device(cuda, layer, x.reshape(2, 3, 24), ids.reshape(2, 3, 2), weights.reshape(2, 3, 2))
    np.testing.assert_array_equal(cuda.get(y).reshape(6, 24), flat)


def test_refusals(cuda):
    layer = one_stack("bf16", 4, 24, 16)
    x, ids, weights = problem(layer, 3, 2)
    with pytest.raises(ValueError, match=r"moe: x has shape \(3, 25\), expected \(..., 24\)"):
        on_device(cuda, layer, np.zeros((3, 25), np.float32), ids, weights)
    with pytest.raises(ValueError, match="moe: ids has dtype f32"):
        on_device(cuda, layer, x, ids.astype(np.float32), weights)
    with pytest.raises(ValueError, match="out has shape"):
        on_device(cuda, layer, x, ids, weights, out=cuda.full((3, 23), 0, "f32"))
    with pytest.raises(ValueError, match="stream is for weights on CUDA devices"):
        ff.moe(x, ids, weights, **layer.keywords, activation="silu", stream=1)
    with pytest.raises((RuntimeError, ValueError, BufferError)):
        ff.moe(x, ids, weights, **{name: put(cuda, w) for name, w in layer.keywords.items()}, activation="silu")
