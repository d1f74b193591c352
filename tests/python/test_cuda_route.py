"""Routers on devices: against the float64 oracle where there is one, else beside the CPU's; see cuda_support.py."""

import numpy as np
import pytest

import fastffn as ff
from cuda_support import DTYPES
from kernel_support import normal
from test_kernels_route import ROUTERS, check_route, options_of

TABLES = ("bias", "correction_bias", "gamma")


def on_device(cuda, logits, k, **options):
    options = {name: cuda.put(value) if name in TABLES else value for name, value in options.items()}
    return tuple(cuda.get(array) for array in ff.route_topk(cuda.put(logits), k, **options))


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_routers(cuda, name, dtype):
    if dtype not in cuda.dtypes:
        pytest.skip(f"{cuda.name} has no arrays of it")
    experts, k, options = options_of(name)
    logits = normal(np.random.default_rng(1), (40, experts), dtype)
    check_route(on_device(cuda, logits, k, **options), logits.astype(np.float64), k or experts, options)


@pytest.mark.parametrize("score", ["softmax", "topk_softmax", "sigmoid", "relu"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_with_nan_or_infinity_are_the_cpus(cuda, score, value):
    logits = normal(np.random.default_rng(2), (9, 20))
    logits[1::3, ::4] = value
    logits[2] = value
    ids, weights = on_device(cuda, logits, 5, score=score)
    expected = ff.route_topk(logits, 5, score=score)
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_allclose(weights, expected[1], rtol=4e-6, atol=0)


def test_capacity_hash_and_load(cuda):
    rng = np.random.default_rng(3)
    logits = normal(rng, (60, 12))
    route = on_device(cuda, logits, 3, capacity_factor=0.5)
    expected = ff.route_topk(logits, 3, capacity_factor=0.5)
    np.testing.assert_array_equal(route[0], expected[0])
    assert (route[0] < 0).any()
    np.testing.assert_allclose(route[1], expected[1], rtol=4e-6, atol=0)

    tokens = rng.integers(0, 30, (5, 7))
    table = rng.integers(-1, 12, (30, 2)).astype(np.int32)
    ids, weights = ff.route_hash(cuda.put(tokens), cuda.put(table))
    expected = ff.route_hash(tokens, table)
    np.testing.assert_array_equal(cuda.get(ids), expected[0])
    np.testing.assert_array_equal(cuda.get(weights), expected[1])

    there = cuda.put(expected[0]), cuda.put(expected[1])
    assert ff.limit_capacity(*there, 12, capacity=3) == there
    ff.limit_capacity(*expected, 12, capacity=3)
    np.testing.assert_array_equal(cuda.get(there[0]), expected[0])
    np.testing.assert_array_equal(cuda.get(there[1]), expected[1])
    if cuda.is_gpu:  # what reads the counts is the framework
        assert ff.expert_load(there[0], 12).slots == ff.expert_load(expected[0], 12).slots


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_expert_choice_is_the_cpus(cuda, score):
    logits = normal(np.random.default_rng(8), (70, 12))
    logits[3, 4] = np.nan
    for capacity in (0, 1, 20, 100):
        ids, weights = (
            cuda.get(a) for a in ff.route_expert_choice(cuda.put(logits), 4, capacity=capacity, score=score)
        )
        expected = ff.route_expert_choice(logits, 4, capacity=capacity, score=score)
        np.testing.assert_array_equal(ids, expected[0])
        np.testing.assert_allclose(weights, expected[1], rtol=4e-6, atol=0)


def test_where_results_go(cuda):
    logits = normal(np.random.default_rng(4), (2, 3, 10))
    out = cuda.put(np.zeros((2, 3, 4), np.int32)), cuda.put(np.zeros((2, 3, 4), np.float32))
    assert ff.route_topk(cuda.put(logits), 4, out=out) is out
    ids, weights = on_device(cuda, logits, 4)
    assert ids.shape == weights.shape == (2, 3, 4)
    np.testing.assert_array_equal(cuda.get(out[0]), ids)
    np.testing.assert_array_equal(cuda.get(out[1]), weights)


def test_a_layer_of_route_and_moe(cuda):
    """Logits, route and experts on the device, as a model runs them."""
    rng = np.random.default_rng(5)
    x, router = normal(rng, (7, 32)), normal(rng, (6, 32), scale=0.2)
    experts = {name: normal(rng, shape, scale=0.2) for name, shape in (("w_up", (6, 16, 32)), ("w_down", (6, 32, 16)))}
    logits = ff.router_logits(cuda.put(x), cuda.weight(router, "f32"))
    y = ff.moe(
        cuda.put(x), *ff.route_topk(logits, 2), **{name: cuda.weight(w, "f32") for name, w in experts.items()},
        activation="gelu",
    )  # fmt: skip
    expected = ff.moe(
        x, *ff.route_topk(ff.router_logits(x, ff.pack(router, "f32")), 2),
        **{name: ff.pack(w, "f32") for name, w in experts.items()}, activation="gelu",
    )  # fmt: skip
    np.testing.assert_allclose(cuda.get(y), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_refusals(cuda):
    logits = cuda.put(normal(np.random.default_rng(6), (3, 10)))
    with pytest.raises(ValueError, match="route_topk: k is 11, expected 1 to 10"):
        ff.route_topk(logits, 11)
    with pytest.raises(ValueError, match="stream is for arrays on CUDA devices, and logits is on the CPU"):
        ff.route_topk(cuda.get(logits), 2, stream=1)
    with pytest.raises(ValueError, match="route_expert_choice: k is 11, expected 1 to 10"):
        ff.route_expert_choice(logits, 11, capacity=1)
    with pytest.raises((RuntimeError, ValueError, BufferError)):
        ff.route_topk(logits, 2, bias=np.zeros(10, np.float32))
