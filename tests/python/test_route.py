"""Routes that are no top-k: expert choice, hash tables, capacity, load; and arguments of all of them."""

from __future__ import annotations

import inspect
import tracemalloc
from typing import Any

import numpy as np
import pytest

import fastffn as ff
from api_support import Exporter, tokens
from reference import route as oracle

LOGITS = tokens(5, 16)


def error_of(kind: type[Exception], function: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(kind) as error:
        function(*arguments, **keywords)
    assert type(error.value) is kind
    return str(error.value)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("count", [0, 1, 7, 33, 200])
def test_expert_choice(score: str, count: int) -> None:
    logits = tokens(count, 12, seed=3)
    for capacity in (0, 1, 5, 16, 1000):
        for k in (None, 1, 4):
            ids, weights = ff.route_expert_choice(logits, k, capacity=capacity, score=score)
            expected = oracle.expert_choice(logits, capacity, k, score)
            np.testing.assert_array_equal(ids, expected[0])
            np.testing.assert_allclose(weights, expected[1], rtol=1e-5)
    ids, _ = ff.route_expert_choice(logits, capacity_factor=2.0)
    np.testing.assert_array_equal(ids, ff.route_expert_choice(logits, capacity=-(-2 * count // 12))[0])


def test_expert_choice_of_bad_tokens_and_ties() -> None:
    logits = np.zeros((6, 4), np.float32)
    logits[1, 2], logits[3, 0], logits[4] = np.nan, np.inf, -np.inf
    logits[5, 1] = -np.inf
    ids, weights = ff.route_expert_choice(logits, capacity=2)
    np.testing.assert_array_equal(ids[0], [0, 1, 2, 3])  # ties: the earlier token, and the lower expert
    np.testing.assert_array_equal(ids[2], [1, -1, -1, -1])
    np.testing.assert_array_equal(ids[5], [0, 2, 3, -1])  # a third each, more than token 2's quarters
    assert (ids[[1, 3, 4]] == -1).all() and (weights[[1, 3, 4]] == 0).all()


def test_expert_choice_has_the_same_bits_with_any_threads() -> None:
    logits = tokens(700, 24, seed=5)
    expected = ff.route_expert_choice(logits, capacity_factor=1.5)
    try:
        for threads in range(1, 6):
            ff.set_num_threads(threads)
            found = ff.route_expert_choice(logits, capacity_factor=1.5)
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    finally:
        ff.set_num_threads(0)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_hash(dtype: Any) -> None:
    table = np.random.default_rng(0).integers(0, 9, (50, 3)).astype(dtype)
    table[7, 1] = -1
    words = np.array([[3, 7, 49], [0, 0, 7]], dtype)
    ids, weights = ff.route_hash(words, table)
    assert ids.dtype == np.int32 and weights.dtype == np.float32
    np.testing.assert_array_equal(ids, table[words])
    np.testing.assert_array_equal(weights, table[words] >= 0)
    out = (np.zeros((2, 3, 3), np.int32), np.zeros((2, 3, 3), np.float32))
    assert ff.route_hash(words, table, out=out) is out
    np.testing.assert_array_equal(out[0], ids)
    words[1, 1] = 50
    assert error_of(ValueError, ff.route_hash, words, table) == (
        "route_hash: tokens has 50 at position 4, expected 0 to 49 from table (50, 3)"
    )
    words[1, 1] = -1
    assert "tokens has -1" in error_of(ValueError, ff.route_hash, words, table)
    assert "dtype f32" in error_of(ValueError, ff.route_hash, LOGITS, table)


@pytest.mark.parametrize("capacity", [0, 1, 3, 100])
def test_capacity(capacity: int) -> None:
    ids, weights = ff.route_topk(tokens(40, 6), 3)
    expected = oracle.limit_capacity(ids, weights, 6, capacity)
    found = ff.limit_capacity(ids, weights, 6, capacity=capacity)
    assert found[0] is ids and found[1] is weights
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(weights, expected[1])
    assert (np.bincount(ids[ids >= 0], minlength=6) <= capacity).all()
    # Empty slots take no place.
    np.testing.assert_array_equal(ff.limit_capacity(ids.copy(), weights.copy(), 6, capacity=capacity)[0], ids)


def test_first_choices_come_before_second_ones() -> None:
    ids = np.array([[0, 1], [2, 1], [1, 0]], np.int32)
    weights = np.ones((3, 2), np.float32)
    ff.limit_capacity(ids, weights, 3, capacity=1)
    np.testing.assert_array_equal(ids, [[0, -1], [2, -1], [1, -1]])
    np.testing.assert_array_equal(weights, [[1, 0]] * 3)


def test_capacity_factor() -> None:
    logits = np.zeros((10, 4), np.float32)  # all want experts 0 and 1
    for factor, capacity in ((1.0, 5), (1.25, 7), (0.0, 0), (0.01, 1)):
        ids, _ = ff.route_topk(logits, 2, capacity_factor=factor)
        assert ff.expert_load(ids, 4).counts.tolist() == [min(capacity, 10)] * 2 + [0, 0]
        again, weights = ff.route_topk(logits, 2)
        ff.limit_capacity(again, weights, 4, capacity_factor=factor)
        np.testing.assert_array_equal(again, ids)


def test_load() -> None:
    ids = np.array([[0, 3], [-1, 3], [3, 1]], np.int32)
    load = ff.expert_load(ids, 5)
    assert load.counts.dtype == np.int64 and load.counts.tolist() == [1, 1, 0, 3, 0]
    assert (load.slots, load.max, load.mean, load.idle, load.imbalance) == (5, 3, 1.0, 2, 3.0)
    assert ff.expert_load(np.full((2, 2), -1, np.int32), 3).imbalance == 0
    assert error_of(ValueError, ff.expert_load, ids, 3) == ("expert_load: ids has 3 at position 1, expected -1 to 2")
    assert "expected -1 to 2" in error_of(ValueError, ff.limit_capacity, ids, ids.astype(np.float32), 3, capacity=1)


def test_kinds_of_arrays() -> None:
    expected = ff.route_topk(LOGITS, 3)
    torch = pytest.importorskip("torch")
    for logits in (torch.from_numpy(LOGITS), torch.from_numpy(LOGITS).double().float().requires_grad_(False)):
        ids, weights = ff.route_topk(logits, 3)
        assert ids.dtype == torch.int32 and weights.dtype == torch.float32
        np.testing.assert_array_equal(ids.numpy(), expected[0])
        np.testing.assert_array_equal(weights.numpy(), expected[1])
    ids, weights = ff.route_topk(torch.from_numpy(LOGITS).bfloat16(), 3)
    assert isinstance(ids, torch.Tensor) and weights.dtype == torch.float32
    assert ff.expert_load(ids, 16).counts.dtype == torch.int64
    assert isinstance(ff.route_expert_choice(torch.from_numpy(LOGITS), capacity=2)[0], torch.Tensor)


def test_arrays_that_only_speak_dlpack() -> None:
    ids, weights = ff.route_topk(Exporter(LOGITS), 3)
    assert isinstance(ids, Exporter) and isinstance(weights, Exporter)
    np.testing.assert_array_equal(ids.array, ff.route_topk(LOGITS, 3)[0])
    assert ff.expert_load(memoryview(ids.array), 16).slots == 15


def test_out() -> None:
    expected = ff.route_topk(LOGITS, 3)
    out = (np.zeros((5, 3), np.int32), np.zeros((5, 3), np.float32))
    assert ff.route_topk(LOGITS, 3, out=out) is out
    np.testing.assert_array_equal(out[0], expected[0])
    np.testing.assert_array_equal(out[1], expected[1])

    def bad(ids: Any, weights: Any) -> str:
        return error_of(ValueError, ff.route_topk, LOGITS, 3, out=(ids, weights))

    assert bad(out[0][:4], out[1]) == (
        "route_topk: ids has shape (4, 3), expected (5, 3) from logits (5, 16) and k = 3"
    )
    assert bad(out[0], out[1].astype(np.float64)) == "route_topk: weights has dtype f64, expected f32"
    assert bad(out[0].astype(np.int64), out[1]) == "route_topk: ids has dtype i64, expected i32"
    assert "expected a contiguous array" in bad(np.zeros((5, 4), np.int32)[:, :3], out[1])
    assert bad(out[0], out[0].view(np.float32)) == "route_topk: ids and weights share a range of memory"
    assert "weights and logits share" in bad(out[0], LOGITS.reshape(-1)[:15].reshape(5, 3))
    frozen = out[1].copy()
    frozen.flags.writeable = False
    assert bad(out[0], frozen) == "route_topk: weights is read-only"
    assert error_of(TypeError, ff.route_topk, LOGITS, 3, out=out[0]) == (
        "route_topk: out has type numpy.ndarray, expected a tuple (ids, weights)"
    )
    assert "tuple of 3" in error_of(TypeError, ff.route_topk, LOGITS, 3, out=(*out, out[0]))


def test_out_is_allocation_free() -> None:
    out = (np.zeros((5, 3), np.int32), np.zeros((5, 3), np.float32))
    ff.route_topk(LOGITS, 3, out=out)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(100):
            ff.route_topk(LOGITS, 3, out=out)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now - before < 512 and peak - before < 1024


def test_arguments() -> None:
    def bad(k: Any = 2, **options: Any) -> str:
        return error_of(ValueError, ff.route_topk, LOGITS, k, **options)

    assert bad(0) == "route_topk: k is 0, expected 1 to 16 (the experts of logits)"
    assert bad(17) == "route_topk: k is 17, expected 1 to 16 (the experts of logits)"
    assert bad(score="tanh") == (
        "route_topk: score 'tanh' is not known; expected softmax, topk_softmax, sigmoid or relu"
    )
    assert bad(group_score="min") == "route_topk: group_score 'min' is not known; expected max or top2"
    assert bad(groups=3) == "route_topk: groups is 3, expected a divisor of 16 experts"
    assert bad(groups=4, topk_groups=5) == "route_topk: topk_groups is 5, expected 0 (all) to 4 (groups)"
    assert bad(5, groups=4, topk_groups=1) == "route_topk: k is 5, more than the 4 experts of 1 groups"
    for p in (0, -1, 1.5, np.nan):
        assert "top_p is" in bad(top_p=p)
    assert bad(top_p=0.5, score="sigmoid") == "route_topk: top_p needs score 'softmax', got 'sigmoid'"
    assert bad(gamma=tokens(16)) == "route_topk: gamma needs score 'relu', got 'softmax'"
    assert "renormalize does not go" in bad(score="relu", renormalize=True)
    assert "scale is inf" in bad(scale=np.inf)
    assert bad(bias=tokens(15)) == "route_topk: bias has shape (15,), expected (16,) from the experts of logits"
    assert "correction_bias has dtype f64" in bad(correction_bias=tokens(16).astype(np.float64))
    assert "capacity_factor is -1" in bad(capacity_factor=-1)
    assert error_of(ValueError, ff.route_topk, LOGITS.astype(np.float64), 2) == (
        "route_topk: logits has dtype f64, expected f32, f16 or bf16"
    )
    assert "0 experts" in error_of(ValueError, ff.route_topk, np.zeros((3, 0), np.float32), None) or True
    assert "shape ()" in error_of(ValueError, ff.route_topk, np.float32(1), 1)
    assert "negative stride" in error_of(ValueError, ff.route_topk, LOGITS[::-1], 1)
    assert error_of(TypeError, ff.route_topk, LOGITS) == "route_topk() missing required argument: 'k'"
    assert error_of(TypeError, ff.route_topk, LOGITS, 2.0) == "route_topk: k has type float, expected an integer"
    assert "renormalize has type int" in error_of(TypeError, ff.route_topk, LOGITS, 2, renormalize=1)
    assert "top_p has type str" in error_of(TypeError, ff.route_topk, LOGITS, 2, top_p="all")
    assert "give one of capacity" in error_of(TypeError, ff.route_expert_choice, LOGITS)
    assert "score is 'relu'" in error_of(ValueError, ff.route_expert_choice, LOGITS, capacity=1, score="relu")
    assert "capacity is -1" in error_of(ValueError, ff.route_expert_choice, LOGITS, capacity=-1)


def test_router_logits() -> None:
    rng = np.random.default_rng(4)
    w, mix = rng.standard_normal((16, 32)).astype(np.float32), rng.standard_normal((16, 16)).astype(np.float32)
    x, bias = tokens(2, 5, 32), tokens(16)
    packed, packed_mix = ff.pack(w, "f32"), ff.pack(mix, "f32")
    half = x.astype(np.float16)
    logits = ff.router_logits(half, packed, bias)
    assert logits.dtype == np.float32 and logits.shape == (2, 5, 16)
    np.testing.assert_allclose(logits, half.astype(np.float64) @ w.T + bias, atol=1e-4)
    second = ff.router_logits(x, packed, previous=logits, mix=packed_mix)
    np.testing.assert_allclose(second, x @ w.T + logits.astype(np.float64) @ mix.T, atol=1e-4)
    out = np.empty((2, 5, 16), np.float32)
    assert ff.router_logits(x, packed, previous=logits, mix=packed_mix, out=out) is out
    np.testing.assert_array_equal(out, second)
    assert error_of(TypeError, ff.router_logits, x, packed, previous=logits) == (
        "router_logits: previous and mix go together; give both or none"
    )
    assert error_of(ValueError, ff.router_logits, x[..., :31].copy(), packed) == (
        "router_logits: x has shape (2, 5, 31), expected (..., 32) from w (16, 32)"
    )
    assert "previous has shape (2, 5, 32)" in error_of(
        ValueError, ff.router_logits, x, packed, previous=x, mix=packed_mix
    )
    assert "expected a contiguous f32 array of shape (2, 5, 16)" in error_of(
        ValueError, ff.router_logits, x, packed, previous=logits, mix=packed_mix, out=out[:1]
    )


def test_signature() -> None:
    assert str(inspect.signature(ff.route_topk)).startswith("(logits, k, *, score='softmax', renormalize=False,")
