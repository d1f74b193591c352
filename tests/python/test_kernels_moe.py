"""moe against the float64 oracle: every format and dtype, routes of every shape, shared and special experts."""

import numpy as np
import pytest

import fastffn as ff
from kernel_support import ACTIVATIONS, DTYPES, FORMATS, SMALL, arithmetic, check, normal
from moe_support import SPECIAL_KINDS, Mixture, Stack, far_rows, one_stack, random_route

formats = pytest.mark.parametrize("fmt", FORMATS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
TOKENS = (0, 1, 2, 7, 33) if SMALL else (0, 1, 2, 3, 7, 16, 33, 150)


def problem(layer, tokens, k, dtype="f32", seed=1, zipf=False):
    rng = np.random.default_rng([seed, tokens, k])
    x = normal(rng, (tokens, layer.stacks[0].d_model), dtype)
    return x, *random_route(rng, tokens, k, layer.ids_end, zipf)


@formats
@dtypes
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("bias", [None, "same"], ids=["", "bias"])
def test_every_kind(fmt, dtype, gated, bias):
    layer = one_stack(fmt, 7, 50, 70, gated=gated, bias=dtype if bias else None)
    for tokens in TOKENS:
        layer.check(*problem(layer, tokens, 3, dtype))


@formats
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "swiglu_clamped"])
def test_activations(fmt, activation):
    layer = one_stack(fmt, 5, 40, 48, bias="f32", activation=activation)
    for tokens in (1, 40):
        x, ids, weights = problem(layer, tokens, 2)
        layer.check(x * 3, ids, weights)  # wide enough for the clamps


@formats
@pytest.mark.parametrize("tokens", [1, 2, 40])
def test_dimensions(fmt, tokens):
    for experts, d_model, d_ff, d_out, k in (
        (1, 1, 1, 1, 1),
        (3, 17, 33, 0, 2),
        (60, 31, 15, 47, 4),
        (6, 129, 65, 64, 6),
    ):
        layer = one_stack(fmt, experts, d_model, d_ff, d_out=d_out, gated=tokens != 2)
        layer.check(*problem(layer, tokens, k))


@formats
@pytest.mark.skipif(SMALL, reason="FASTFFN_TEST_SIZE=small")
def test_real_dimensions(fmt):
    layer = one_stack(fmt, 8, 512, 256)
    for tokens in (1, 100):
        layer.check(*problem(layer, tokens, 4, "bf16"))


@formats
def test_every_expert_on_equals_the_dense_sum(fmt):
    """k = E with weights of 1 is the dense layer whose hidden neurons are all the experts' (but for int8's rows)."""
    layer = one_stack(fmt, 4, 48, 32)
    x, _, _ = problem(layer, 20, 4)
    ids = np.tile(np.arange(4, dtype=np.int32), (20, 1))
    y = layer.check(x, ids, None)
    experts = layer.experts
    dense = {name: np.concatenate([getattr(e, name) for e in experts]) for name in ("w_up", "w_gate")}
    w_down = np.concatenate([e.w_down for e in experts], axis=1)
    packed = {name: ff.pack(w.astype(np.float32), "f32") for name, w in (*dense.items(), ("w_down", w_down))}
    expected = ff.ffn(x, **packed, activation="silu")
    bound = layer.bounded(x, ids, None).error + 1e-5
    rounds = arithmetic(fmt) in ("bf16", "int8")  # activations, which the exact dense layer does not
    exact = np.abs(expected).max() * 0.03 if rounds else bound
    assert (np.abs(y - expected) <= exact).all()


@formats
def test_one_expert_equals_ffn(fmt):
    layer = one_stack(fmt, 1, 50, 70, bias="f32")
    for tokens in (1, 40):
        x, ids, _ = problem(layer, tokens, 1)
        y = layer.check(x, ids, np.ones((tokens, 1), np.float32))
        biases = {n: b[0] for n, b in layer.keywords.items() if n[0] == "b"}
        packed = {n: w for n, w in layer.keywords.items() if n[0] == "w"}
        np.testing.assert_allclose(y, ff.ffn(x, **packed, **biases, activation="silu"), rtol=1e-4, atol=1e-4)


@formats
@pytest.mark.parametrize(
    "route", ["one expert", "zipf", "one each", "mostly idle", "duplicates", "empty slots", "all empty"]
)
def test_routes(fmt, route):
    layer = one_stack(fmt, 16, 50, 40, bias="f32")
    rng = np.random.default_rng(3)
    for tokens in (1, 16, 80):
        x, ids, weights = problem(layer, tokens, 4, zipf=route == "zipf")
        if route == "one expert":
            ids, weights = np.full((tokens, 1), 11, np.int32), weights[:, :1]
        elif route == "one each":
            ids = (np.arange(tokens)[:, None] + np.arange(4)).astype(np.int32) % 16
        elif route == "mostly idle":
            ids = (ids % 2 + 14).astype(np.int32)
        elif route == "duplicates":
            ids[:, 1:3] = ids[:, :1]
        elif route == "empty slots":
            ids[rng.random(ids.shape) < 0.5] = -1
            ids[::5] = -1
        elif route == "all empty":
            ids[:] = -1
        y = layer.check(x, ids, weights)
        if route == "all empty":
            assert (y == 0).all()
        if route == "empty slots":
            assert (y[::5] == 0).all()


@formats
@dtypes
@pytest.mark.parametrize("tokens", [1, 2, 30])
def test_shared_and_special_experts(fmt, dtype, tokens):
    for gated_shared, special, shared in (
        (True, SPECIAL_KINDS, [Stack(fmt, 1, 50, 90, seed=2)]),
        (False, ("copy", "zero"), [Stack(fmt, 3, 50, 20, seed=3), Stack("f32", 1, 50, 33, seed=4)]),
        (False, ("zero",), []),
    ):
        layer = one_stack(fmt, 6, 50, 40, shared=shared, gated_shared=gated_shared, special=special)
        layer.check(*problem(layer, tokens, 4, dtype))


@formats
@pytest.mark.parametrize("tokens", [1, 30])
def test_shared_experts_alone(fmt, tokens):
    layer = one_stack(fmt, 3, 50, 40, shared=[Stack(fmt, 2, 50, 64, seed=5)], gated_shared=True)
    x, ids, weights = problem(layer, tokens, 2)
    layer.check(x, np.full_like(ids, -1), weights)
    layer.check(x, ids[:, :0], weights[:, :0])


@formats
def test_only_special_experts_are_picked(fmt):
    layer = one_stack(fmt, 3, 50, 40, special=SPECIAL_KINDS)
    x, ids, weights = problem(layer, 25, 4)
    layer.check(x, (ids % 4 + 3).astype(np.int32), weights)
    y = layer(x, np.full((25, 1), 4, np.int32), None)
    np.testing.assert_array_equal(y, x)  # copy
    assert (layer(x, np.full((25, 1), 3, np.int32), None) == 0).all()  # zero


@formats
def test_widths_and_formats_mix(fmt):
    stacks = [Stack(fmt, 3, 50, 70, seed=1), Stack("f32", 1, 50, 16, seed=2), Stack("bf16", 4, 50, 33, seed=3)]
    layer = Mixture(stacks, shared=[Stack("int8", 1, 50, 80, seed=4)])
    for tokens in (1, 30):
        layer.check(*problem(layer, tokens, 3))


@formats
@dtypes
@pytest.mark.parametrize("tokens", [1, 30])
def test_weights_on_input(fmt, dtype, tokens):
    layer = one_stack(fmt, 6, 50, 40, weights_on_input=True, bias="f32", shared=[Stack(fmt, 1, 50, 32, seed=6)])
    layer.check(*problem(layer, tokens, 2, dtype))


@formats
def test_other_dtypes_of_ids_and_weights(fmt):
    layer = one_stack(fmt)
    x, ids, weights = problem(layer, 9, 3)
    expected = layer(x, ids, weights)
    np.testing.assert_array_equal(layer(x, ids.astype(np.int64), weights), expected)
    for dtype in ("f16", "bf16"):
        rounded = weights.astype(DTYPES[dtype])
        np.testing.assert_array_equal(layer(x, ids, rounded), layer(x, ids, rounded.astype(np.float32)))
    wide_ids, wide_weights = np.full((9, 8), 99, np.int32), np.full((18, 5), np.nan, np.float32)
    wide_ids[:, 1:7:2], wide_weights[::2, 2:] = ids, weights
    np.testing.assert_array_equal(layer(x, wide_ids[:, 1:7:2], wide_weights[::2, 2:]), expected)


@formats
def test_strided_x_and_out(fmt):
    layer = one_stack(fmt)
    for tokens in (1, 30):
        x, ids, weights = problem(layer, tokens, 3)
        expected = layer(x, ids, weights)
        wide, out = np.full((2 * tokens, 61), 7, np.float32), np.full((tokens, 55), 7, np.float32)
        wide[::2, 5:55] = x
        assert layer(wide[::2, 5:55], ids, weights, out=out[:, 2:52]) is not None
        np.testing.assert_array_equal(out[:, 2:52], expected)
        assert (out[:, :2] == 7).all() and (out[:, 52:] == 7).all()
    x, ids, weights = problem(layer, 12, 3)
    cube = layer(
        x.reshape(3, 4, 50).transpose(1, 0, 2),
        ids.reshape(3, 4, 3).transpose(1, 0, 2),
        weights.reshape(3, 4, 3).transpose(1, 0, 2),
    )
    np.testing.assert_allclose(cube.transpose(1, 0, 2).reshape(12, 50), layer(x, ids, weights), rtol=1e-5, atol=1e-5)


@formats
def test_order_of_tokens_and_of_slots(fmt):
    """The same tokens in another order give the same rows; so do the same picks in another order."""
    layer = one_stack(fmt, 16, 50, 40, shared=[Stack(fmt, 1, 50, 32, seed=7)])
    rng = np.random.default_rng(8)
    for tokens in (5, 90):
        x, ids, weights = problem(layer, tokens, 4)
        expected = layer(x, ids, weights)
        order = rng.permutation(tokens)
        np.testing.assert_array_equal(layer(x[order], ids[order], weights[order]), expected[order])
        slots = rng.permutation(4)
        np.testing.assert_array_equal(layer(x, ids[:, slots], weights[:, slots]), expected)


@formats
@dtypes
def test_splitting_a_batch(fmt, dtype):
    """Few and many tokens are summed in another order: equal within the bounds of both."""
    layer = one_stack(fmt, 8, 65, 40)
    x, ids, weights = problem(layer, 60, 3, dtype)
    bounded = layer.bounded(x, ids, weights)
    for parts in (2, 7, 60):
        pieces = [layer(*part) for part in zip(*(np.array_split(a, parts) for a in (x, ids, weights)), strict=True)]
        check(np.concatenate(pieces), bounded, dtype)


@formats
@pytest.mark.parametrize("tokens", [1, 3, 17, 70])
def test_any_number_of_threads(fmt, tokens):
    layer = one_stack(
        fmt, 12, 130, 90, shared=[Stack(fmt, 1, 130, 64, seed=9)], gated_shared=True, special=SPECIAL_KINDS
    )
    x, ids, weights = problem(layer, tokens, 4, "bf16", zipf=True)
    try:
        ff.set_num_threads(1)
        expected = layer.check(x, ids, weights)
        for threads in range(2, 9):
            ff.set_num_threads(threads)
            for _ in range(2):
                np.testing.assert_array_equal(layer(x, ids, weights), expected)
    finally:
        ff.set_num_threads(0)


@formats
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_nan_and_infinity_stay_in_their_tokens(fmt, tokens):
    layer = one_stack(fmt, 6, 50, 40, shared=[Stack(fmt, 1, 50, 32, seed=10)], gated_shared=True)
    x, ids, weights = problem(layer, tokens, 2)
    expected = layer(x, ids, weights)
    for bad in {0, tokens - 1}:
        for value in (np.nan, np.inf):
            poisoned = x.copy()
            poisoned[bad, 17] = value
            y = layer(poisoned, ids, weights)
            assert not np.isfinite(y[bad]).any() if np.isnan(value) else not np.isfinite(y[bad]).all()
            others = np.arange(tokens) != bad
            np.testing.assert_array_equal(y[others], expected[others])
            # A weight of 0 is no empty slot.
            assert np.isnan(layer(poisoned, ids, weights * 0)[bad]).any()


@formats
def test_a_route_of_bad_logits(fmt):
    """Rows that the router cannot read reach no expert's result, and nothing outside the layer."""
    layer = one_stack(fmt)
    rng = np.random.default_rng(11)
    x, logits = normal(rng, (12, 50)), normal(rng, (12, 8))
    logits[3], logits[5, 2], logits[8, 1] = np.nan, np.nan, np.inf
    ids, weights = ff.route_topk(logits, 3)
    y = layer.check(x, ids, weights)
    assert (y[[3, 5, 8]] == 0).all()


@formats
def test_weights_at_the_edge(fmt):
    layer = one_stack(fmt)
    x, ids, weights = problem(layer, 20, 3)
    for scale in (0.0, -1.0, 1e-38, 1e30):
        layer.check(x, ids, (weights * np.float32(scale)).astype(np.float32))


@formats
def test_a_great_many_tokens(fmt):
    layer = one_stack(fmt, 4, 3, 5)
    layer.check(*problem(layer, 1025 if SMALL else 65_537, 2))


@pytest.mark.parametrize("fmt", ["f32", "bf16"])
def test_offsets_beyond_32_bits(fmt):
    layer = one_stack(fmt, 4)
    x, ids, weights = problem(layer, 3, 2, "f16")
    expected = layer(x, ids, weights)
    np.testing.assert_array_equal(layer(far_rows(x), ids, weights, out=far_rows(np.zeros_like(expected))), expected)
    logits = normal(np.random.default_rng(2), (3, 20), "f16")
    for found, plain in zip(ff.route_topk(far_rows(logits), 4), ff.route_topk(logits, 4), strict=True):
        np.testing.assert_array_equal(found, plain)


@formats
@pytest.mark.parametrize("seed", range(5 if SMALL else 30))
def test_random_layers(fmt, seed):
    """Whatever nobody thought of."""
    rng = np.random.default_rng([12, seed])
    experts, tokens, d_model, d_ff, d_out = (
        int(np.exp(rng.uniform(0, np.log(top)))) for top in (40, 200, 200, 200, 200)
    )
    layer = one_stack(
        fmt,
        experts,
        d_model,
        d_ff,
        d_out=d_out,
        gated=bool(rng.integers(2)),
        bias=[None, *DTYPES][rng.integers(4)],
        activation=ACTIVATIONS[rng.integers(len(ACTIVATIONS))],
        weights_on_input=bool(rng.integers(4) == 0),
        seed=seed,
    )
    k = int(rng.integers(1, experts + 1))
    layer.check(*problem(layer, tokens, min(k, 9), list(DTYPES)[rng.integers(3)], seed, bool(rng.integers(2))))
