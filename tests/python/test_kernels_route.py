"""Routers against the float64 oracle, on every instruction set: choices, weights, ties, values at the edge."""

import ml_dtypes
import numpy as np
import pytest

import fastffn as ff
from kernel_support import DTYPES, SMALL
from reference import route as oracle

RNG = np.random.default_rng
TOKENS = 40 if SMALL else 300

# The published models' routers, by experts and k.
ROUTERS = {
    "olmoe": (64, 8, {}),
    "qwen1.5": (60, 4, {}),
    "qwen3": (128, 8, {"renormalize": True}),
    "mixtral": (8, 2, {"renormalize": True}),
    "gpt-oss": (32, 4, {"score": "topk_softmax", "bias": True}),
    "deepseek-v2": (160, 6, {"groups": 8, "topk_groups": 3, "scale": 16.0}),
    "deepseek-v3": (
        256,
        8,
        {
            "score": "sigmoid",
            "renormalize": True,
            "scale": 2.5,
            "correction_bias": True,
            "groups": 8,
            "topk_groups": 4,
            "group_score": "top2",
        },
    ),
    "llama4": (16, 1, {"score": "sigmoid"}),
    "blockffn": (97, None, {"score": "relu", "gamma": True}),
    "blockffn, 5 at most": (40, 5, {"score": "relu", "gamma": True}),
    "top-p": (64, 16, {"top_p": 0.6}),
    "top-p, renormalized": (33, 33, {"top_p": 0.9, "renormalize": True}),
    "sigmoid": (64, 6, {"score": "sigmoid", "renormalize": True}),
    "groups of sums": (48, 4, {"groups": 6, "topk_groups": 2, "group_score": "top2"}),
    "groups, topk_softmax": (
        48,
        4,
        {"score": "topk_softmax", "groups": 6, "topk_groups": 2, "group_score": "top2"},
    ),
}


def options_of(name, seed=0):
    experts, k, options = ROUTERS[name]
    options = dict(options)
    rng = RNG([seed, experts])
    for table in ("bias", "correction_bias", "gamma"):
        if options.get(table):
            options[table] = rng.standard_normal(experts).astype(np.float32) * (0.2 if table != "gamma" else 1)
    return experts, k, options


def check_route(found, logits, k, options):
    """Distinct ids as the oracle has them (where no choice hangs on less than f32 can tell), and its weights."""
    ids, weights = found
    expected = oracle.topk(logits, k, **options)
    assert ids.dtype == np.int32 and weights.dtype == np.float32
    clear = expected.margin > 1e-6
    assert clear.mean() >= 0.5 or not len(clear)
    np.testing.assert_array_equal(ids[clear], expected.ids[clear])
    np.testing.assert_array_equal(ids < 0, expected.ids < 0)
    for row in ids:
        used = row[row >= 0]
        assert len(set(used)) == len(used) and (used < logits.shape[1]).all()
    score = options.get("score", "softmax")
    error = oracle.weight_error(logits, expected.weights, score, options.get("scale", 1.0))
    assert (np.abs(weights - expected.weights)[clear] <= error[clear]).all()


@pytest.mark.parametrize("name", ROUTERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_routers(name, dtype):
    experts, k, options = options_of(name)
    logits = (RNG(1).standard_normal((TOKENS, experts)) * 2).astype(DTYPES[dtype])
    check_route(ff.route_topk(logits, k, **options), logits.astype(np.float64), k, options)


@pytest.mark.parametrize("score", ff.router_scores())
def test_any_number_of_experts(score):
    rng = RNG(2)
    for experts in (1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 127, 128, 129, 255, 257, 300, 1000):
        logits = rng.standard_normal((5, experts)).astype(np.float32)
        for k in {1, min(3, experts), experts}:
            check_route(ff.route_topk(logits, k, score=score), logits, k, {"score": score})


@pytest.mark.parametrize("tokens", [0, 1, 7, 33, 1000])
def test_any_number_of_tokens(tokens):
    logits = RNG(3).standard_normal((tokens, 64)).astype(np.float32)
    ids, weights = ff.route_topk(logits, 8)
    assert ids.shape == weights.shape == (tokens, 8)
    if tokens:
        check_route((ids, weights), logits, 8, {})


def test_a_great_many_tokens():
    logits = RNG(4).standard_normal((70_000, 8)).astype(np.float32)
    ids, weights = ff.route_topk(logits, 2, renormalize=True)
    np.testing.assert_array_equal(ids, np.argsort(-logits, axis=1, kind="stable")[:, :2])
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("score", ff.router_scores())
def test_ties_go_to_the_lowest_id(score):
    rng = RNG(5)
    for experts in (8, 60, 200):
        logits = rng.integers(-1, 3, (50, experts)).astype(np.float32)
        for k in (1, 5, experts):
            k = min(k, experts)
            found = ff.route_topk(logits, k, score=score)
            np.testing.assert_array_equal(found[0], oracle.topk(logits, k, score=score).ids)
    same = np.zeros((3, 60), np.float32)
    if score != "relu":
        np.testing.assert_array_equal(ff.route_topk(same, 6, score=score)[0], [[0, 1, 2, 3, 4, 5]] * 3)
        # Zeros of both signs are equal.
        same[:, ::2] = -0.0
        np.testing.assert_array_equal(ff.route_topk(same, 6, score=score)[0], [[0, 1, 2, 3, 4, 5]] * 3)


def test_ties_of_groups_go_to_the_lowest_group():
    logits = np.zeros((2, 24), np.float32)
    for group_score in ("max", "top2"):
        ids, _ = ff.route_topk(logits, 4, groups=6, topk_groups=2, group_score=group_score)
        np.testing.assert_array_equal(ids, [[0, 1, 2, 3]] * 2)
        ids, _ = ff.route_topk(logits, 8, groups=6, topk_groups=2, group_score=group_score)
        np.testing.assert_array_equal(ids, [list(range(8))] * 2)


@pytest.mark.parametrize("score", ["softmax", "topk_softmax", "sigmoid", "relu"])
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_with_nan_or_infinity(score, value, dtype):
    logits = RNG(6).standard_normal((7, 60)).astype(DTYPES[dtype])
    expected = ff.route_topk(logits, 6, score=score)
    bad = logits.copy()
    for row, column in ((1, 0), (3, 37), (6, 59)):
        bad[row, column] = value
    bad[4] = value
    ids, weights = ff.route_topk(bad, 6, score=score)
    for row in (1, 3, 4, 6):
        np.testing.assert_array_equal(ids[row], range(6))
        assert (weights[row] == 0).all()
    good = [0, 2, 5]
    np.testing.assert_array_equal(ids[good], expected[0][good])
    np.testing.assert_array_equal(weights[good], expected[1][good])


def test_minus_infinity_masks_an_expert():
    logits = np.full((3, 20), -np.inf, np.float32)
    logits[0, [4, 11]] = [1, 2]
    logits[1, 7] = -1e30
    for score in ("softmax", "topk_softmax", "sigmoid"):
        ids, weights = ff.route_topk(logits, 4, score=score, renormalize=True)
        np.testing.assert_array_equal(ids, [[11, 4, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]])
        assert (weights[0, :2] > 0).all() and (weights[0, 2:] == 0).all()
        np.testing.assert_array_equal(weights[1:, 1:], 0)
        assert (weights[2] == 0).all()
    assert weights[1, 0] == 0  # sigmoid(-1e30)
    ids, weights = ff.route_topk(logits, 4, score="relu")
    np.testing.assert_array_equal(ids, [[11, 4, -1, -1], [-1] * 4, [-1] * 4])


def test_masked_groups_stay_masked_when_scores_are_negative():
    """Masking with 0 would bring experts of dropped groups back once the bias makes all scores negative."""
    logits = RNG(7).standard_normal((50, 32)).astype(np.float32)
    options = {"score": "sigmoid", "groups": 8, "topk_groups": 2, "group_score": "top2", "renormalize": True}
    bias = np.full(32, -5, np.float32)
    ids, weights = ff.route_topk(logits, 6, correction_bias=bias, **options)
    for row in ids:
        assert len({i // 4 for i in row}) <= 2
    check_route((ids, weights), logits, 6, {**options, "correction_bias": bias})


@pytest.mark.parametrize("size", [12.0, -12.0, 1e4, 1e30, -1e30])
def test_weights_do_not_pass_through_the_bias(size):
    """p recovered as choice - bias loses its digits; with a bias of 1e30 all of them."""
    logits = RNG(8).standard_normal((20, 16)).astype(np.float32)
    bias = np.full(16, size, np.float32)
    ids, weights = ff.route_topk(logits, 4, score="sigmoid", correction_bias=bias)
    expected = oracle.sigmoid(np.take_along_axis(logits.astype(np.float64), ids.astype(np.int64), 1))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_infinite_correction_bias():
    logits = RNG(9).standard_normal((5, 16)).astype(np.float32)
    bias = np.zeros(16, np.float32)
    bias[::2] = -np.inf
    ids, weights = ff.route_topk(logits, 8, score="sigmoid", correction_bias=bias)
    assert (ids % 2 == 1).all() and (weights > 0).all()
    bias[3] = np.nan
    ids, weights = ff.route_topk(logits, 8, score="sigmoid", correction_bias=bias)
    np.testing.assert_array_equal(ids, [range(8)] * 5)
    assert (weights == 0).all()


def test_huge_logits():
    logits = np.array([[3e38, -3e38, 1e38, 0], [-3e38, -3.1e38, -3.2e38, -3.3e38]], np.float32)
    for score in ("softmax", "topk_softmax"):
        ids, weights = ff.route_topk(logits, 4, score=score)
        np.testing.assert_array_equal(ids, [[0, 2, 3, 1], [0, 1, 2, 3]])
        np.testing.assert_array_equal(weights, [[1, 0, 0, 0]] * 2)
    ids, weights = ff.route_topk(logits, 4, score="relu")
    np.testing.assert_array_equal(ids, [[0, 2, -1, -1], [-1] * 4])
    np.testing.assert_allclose(weights[0, :2], np.array([3, 1]) / np.sqrt(10 / 4), rtol=1e-6)


def test_relu_of_tiny_logits():
    for size in (1e-12, 1e-25, 1e-36):
        logits = (np.array([[4, -1, 2, 1]]) * size).astype(np.float32)
        check_route(ff.route_topk(logits, None, score="relu"), logits, None, {"score": "relu"})
        ids, weights = ff.route_topk(logits, None, score="relu", norm_eps=0)
        np.testing.assert_allclose(weights[0, :3], np.array([4, 2, 1]) / np.sqrt(21 / 4), rtol=1e-5)


def test_all_sigmoids_underflow():
    logits = np.full((3, 32), -200, np.float32)
    ids, weights = ff.route_topk(logits, 4, score="sigmoid", renormalize=True, scale=2.5)
    np.testing.assert_array_equal(ids, [range(4)] * 3)
    np.testing.assert_array_equal(weights, 0)


def test_no_survivor_of_relu():
    logits = -np.abs(RNG(10).standard_normal((4, 24))).astype(np.float32)
    logits[2, 5] = 1
    ids, weights = ff.route_topk(logits, None, score="relu")
    assert ids.shape == (4, 24)
    assert (ids[[0, 1, 3]] == -1).all() and (weights[[0, 1, 3]] == 0).all()
    assert ids[2, 0] == 5 and (ids[2, 1:] == -1).all()
    np.testing.assert_allclose(weights[2, 0], 1 / np.sqrt(1 / 24 + 1e-6), rtol=1e-6)


def test_negative_gamma_survives():
    logits = np.array([[1, 2, 3, -1]], np.float32)
    ids, weights = ff.route_topk(logits, None, score="relu", gamma=np.array([-2, 0, 0.5, 1], np.float32))
    np.testing.assert_array_equal(ids, [[0, 2, -1, -1]])
    assert weights[0, 0] < 0 < weights[0, 1]


def test_top_p_at_the_boundary():
    logits = np.zeros((1, 8), np.float32)
    for p, kept in ((0.125, 1), (0.1251, 2), (0.25, 2), (0.5, 4), (0.75, 6), (1e-9, 1), (0.99, 8)):
        ids, weights = ff.route_topk(logits, 8, top_p=p)
        np.testing.assert_array_equal(ids[0], [*range(kept), *[-1] * (8 - kept)])
        np.testing.assert_array_equal(weights[0, :kept], 0.125)
        assert ff.route_topk(logits, 8, top_p=p, renormalize=True)[1][0, 0] == np.float32(1) / np.float32(kept)


def test_scale_and_renormalize():
    logits = RNG(11).standard_normal((6, 12)).astype(np.float32)
    _, weights = ff.route_topk(logits, 3, renormalize=True, scale=4)
    np.testing.assert_allclose(weights.sum(1), 4, rtol=1e-6)
    softmax = ff.route_topk(logits, 3, renormalize=True)
    other = ff.route_topk(logits, 3, score="topk_softmax")
    np.testing.assert_array_equal(softmax[0], other[0])
    np.testing.assert_allclose(softmax[1], other[1], rtol=1e-6)


def test_strided_and_misaligned_logits():
    rng = RNG(12)
    wide = rng.standard_normal((9, 100)).astype(np.float32)
    for start in (0, 1, 13):
        logits = wide[::2, start : start + 61]
        expected = ff.route_topk(np.ascontiguousarray(logits), 5)
        found = ff.route_topk(logits, 5)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
    box = rng.standard_normal((4, 6, 32)).astype(np.float32)
    ids, _ = ff.route_topk(box.transpose(1, 0, 2), 3)
    np.testing.assert_array_equal(ids, ff.route_topk(box, 3)[0].transpose(1, 0, 2))
    memory = np.zeros(61 * 4 + 3, np.uint8)
    odd = memory[3:].view(np.float32)
    odd[:] = wide[0, :61]
    np.testing.assert_array_equal(ff.route_topk(odd, 5)[0], ff.route_topk(wide[0, :61].copy(), 5)[0])


@pytest.mark.parametrize("name", ["olmoe", "deepseek-v3", "blockffn", "top-p"])
def test_same_bits_in_any_batch_and_with_any_threads(name):
    experts, k, options = options_of(name)
    logits = RNG(13).standard_normal((500, experts)).astype(ml_dtypes.bfloat16)
    expected = ff.route_topk(logits, k, **options)
    order = RNG(14).permutation(500)
    try:
        for threads in range(1, 6):
            ff.set_num_threads(threads)
            for rows in (slice(None), slice(3, 4), slice(100, 333), order):
                found = ff.route_topk(logits[rows], k, **options)
                np.testing.assert_array_equal(found[0], expected[0][rows])
                np.testing.assert_array_equal(found[1], expected[1][rows])
    finally:
        ff.set_num_threads(0)
