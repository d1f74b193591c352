"""sub_norm=: an RMSNorm of the hidden activations, before a down projection in any format; and BitNet's whole layers."""

import numpy as np
import pytest

import fastffn as ff
from kernel_support import DTYPES, FORMATS, SMALL, check, normal, pack, packed_values
from reference import bitlinear, tolerance
from reference.formats import CODES
from test_kernels_hadamard import bounded as transformed

TOKENS = (1, 5, 40) if SMALL else (1, 5, 18, 40, 300)
DOWN = tuple(dict.fromkeys((*FORMATS, *CODES)))


@pytest.fixture(autouse=True)
def default_threads():
    yield
    ff.set_num_threads(0)


def hidden_of(x, up, gate, fmt, activation):
    """The bounds on the hidden activations of packed up and gate."""
    exact = tolerance.Bounded.exact(x.astype(np.float64))
    u = tolerance.linear(exact, packed_values(up), fmt)
    if gate is None:
        return tolerance.activate(u, activation)
    g = tolerance.linear(exact, packed_values(gate), fmt)
    return tolerance.multiply(tolerance.activate(g, activation), u)


def layer(rng, d_model, d_ff, d_out, fmt="f32", gated=True):
    up = pack(normal(rng, (d_ff, d_model), scale=d_model**-0.5), fmt)
    gate = pack(normal(rng, (d_ff, d_model), scale=d_model**-0.5), fmt) if gated else None
    return up, gate, normal(rng, (d_out, d_ff), scale=d_ff**-0.5)


@pytest.mark.parametrize("fmt", DOWN)
def test_every_format_of_w_down(fmt):
    rng = np.random.default_rng(1)
    for d_ff, gated, dtype in ((100, True, "f32"), (257, False, "bf16"), (64, True, "f16")):
        up, gate, w_down = layer(rng, 48, d_ff, 37, gated=gated)
        down = pack(w_down, fmt)
        gamma = normal(rng, d_ff, dtype)
        for tokens in TOKENS:
            x = normal(rng, (tokens, 48))
            hidden = tolerance.rms_norm(hidden_of(x, up, gate, "f32", "relu2"), gamma.astype(np.float64))
            expected = tolerance.linear(hidden, packed_values(down), fmt)
            y = ff.ffn(x, up, down, gate, activation="relu2", sub_norm=gamma)
            check(y, expected, "f32")


@pytest.mark.parametrize("factors", ["f32", "f16", "bf16", "int8"])
def test_low_rank_w_down(factors):
    """The rms is one number per token, so it may come last; h ⊙ γ is what meets u."""
    rng = np.random.default_rng(2)
    limit = {"f32": 2e-6, "f16": 2e-6, "bf16": 2e-2, "int8": 5e-2}[factors]
    for d_ff, rank in ((100, 20), (600, 70)):
        up, gate, _ = layer(rng, 48, d_ff, 37)
        u, v = normal(rng, (rank, d_ff), scale=d_ff**-0.5), normal(rng, (37, rank), scale=rank**-0.5)
        down = ff.pack((u, v), "lowrank", factors=factors)
        w = np.asarray(ff.unpack(down)).astype(np.float64)
        gamma = normal(rng, d_ff)
        for tokens in (*TOKENS, 1100) if factors == "f32" and not SMALL else TOKENS:
            for segments in (None, [(3, 30), (64, 20)], [(0, d_ff)]):
                x = normal(rng, (tokens, 48))
                columns = np.concatenate([np.arange(s, s + n) for s, n in segments or [(0, d_ff)]])
                hidden = hidden_of(x, up, gate, "f32", "relu2").value[:, columns]
                expected = bitlinear.rms_norm(hidden, gamma[columns].astype(np.float64)) @ w[:, columns].T
                y = ff.ffn(x, up, down, gate, activation="relu2", sub_norm=gamma, segments=segments)
                error = np.abs(y - expected).max(-1) / np.abs(expected).max(-1)
                assert error.max() < limit, (tokens, segments)


@pytest.mark.parametrize("fmt", ["f32", "bf16", "int8", "ternary", "sparse24-bf16"])
def test_segments(fmt):
    """The mean is that of the used columns, γ is sliced with them, and what lies outside is never looked at."""
    rng = np.random.default_rng(3)
    d_ff = 600
    up, gate, w_down = layer(rng, 48, d_ff, 37)
    down = pack(w_down, fmt)
    values = packed_values(down)
    gamma = normal(rng, d_ff)
    for segments in ([(0, 1)], [(3, 5), (8, 7), (250, 12), (511, 2)], [(10, 20), (560, 40)], [(0, 600)]):
        columns = np.concatenate([np.arange(s, s + n) for s, n in segments])
        outside = np.setdiff1d(np.arange(d_ff), columns)
        for tokens in (1, 7, 40):
            x = normal(rng, (tokens, 48))
            hidden = hidden_of(x, up, gate, "f32", "silu")
            used = tolerance.Bounded(hidden.value[:, columns], hidden.error[:, columns])
            used = tolerance.rms_norm(used, gamma[columns].astype(np.float64), 1e-3)
            whole = tolerance.Bounded(np.zeros((tokens, d_ff)), np.zeros((tokens, d_ff)))
            whole.value[:, columns], whole.error[:, columns] = used.value, used.error
            poisoned = gamma.copy()
            poisoned[outside] = np.nan
            keywords = {"activation": "silu", "segments": segments, "sub_norm_eps": 1e-3}
            y = ff.ffn(x, up, down, gate, sub_norm=gamma, **keywords)
            check(y, tolerance.linear(whole, values, fmt), "f32")
            np.testing.assert_array_equal(ff.ffn(x, up, down, gate, sub_norm=poisoned, **keywords), y)


@pytest.mark.parametrize("fmt", DOWN)
def test_relu2_beyond_f16(fmt):
    """relu²(g) · u of 1e15 and more: f16 weights, and f16 in and out, see what is left of it after the norm."""
    rng = np.random.default_rng(4)
    d_ff = 100
    for scale in (1e3, 1e5, 1e9):
        up, gate, w_down = (w for w in layer(rng, 48, d_ff, 37))
        up = ff.pack(normal(rng, (d_ff, 48), scale=scale), "f32")
        gate = ff.pack(normal(rng, (d_ff, 48), scale=scale), "f32")
        down = pack(w_down, fmt)
        gamma = normal(rng, d_ff)
        x = normal(rng, (5, 48), "f16")
        hidden = hidden_of(x, up, gate, "f32", "relu2")
        assert np.abs(hidden.value).max() > 1e8
        expected = tolerance.linear(tolerance.rms_norm(hidden, gamma.astype(float)), packed_values(down), fmt)
        y = ff.ffn(x, up, down, gate, activation="relu2", sub_norm=gamma)
        assert np.isfinite(y.astype(float)).all()
        check(y, expected, "f16")


@pytest.mark.parametrize("fmt", ["f32", "bf16", "int8", "ternary"])
def test_zeros_nan_and_infinity(fmt):
    """Tokens of zeros stay zeros; NaN and infinity stay in their token."""
    rng = np.random.default_rng(5)
    up, gate, w_down = layer(rng, 48, 100, 37)
    down = pack(w_down, fmt)
    gamma = normal(rng, 100)
    x = normal(rng, (20, 48))
    x[4] = 0
    clean = ff.ffn(x, up, down, gate, activation="relu2", sub_norm=gamma)
    assert (clean[4] == 0).all() and np.isfinite(clean).all()
    for value in (np.nan, np.inf):
        poisoned = x.copy()
        poisoned[2, 7] = value
        y = ff.ffn(poisoned, up, down, gate, activation="relu2", sub_norm=gamma)
        assert np.isnan(y[2]).all()
        np.testing.assert_array_equal(np.delete(y, 2, 0), np.delete(clean, 2, 0))


def test_eps():
    rng = np.random.default_rng(6)
    up, gate, w_down = layer(rng, 48, 100, 37)
    down = ff.pack(w_down, "f32")
    gamma = np.ones(100, np.float32)
    x = normal(rng, (3, 48), scale=1e-3)
    for eps in (0, 1e-12, 1e-5, 1.0, None):
        keywords = {} if eps is None else {"sub_norm_eps": eps}
        hidden = hidden_of(x, up, gate, "f32", "silu")
        expected = tolerance.rms_norm(hidden, np.ones(100), 1e-5 if eps is None else eps)
        y = ff.ffn(x, up, down, gate, activation="silu", sub_norm=gamma, **keywords)
        check(y, tolerance.linear(expected, packed_values(down), "f32"), "f32")


@pytest.mark.parametrize("fmt", ["f32", "bf16", "int8", "ternary", "lowrank"])
def test_threads(fmt):
    rng = np.random.default_rng(7)
    up, gate, w_down = layer(rng, 160, 700, 150)
    down = ff.pack(ff.factorize(w_down, rank=40), "lowrank") if fmt == "lowrank" else pack(w_down, fmt)
    gamma = normal(rng, 700)
    for tokens in (1, 20, 300):
        x = normal(rng, (tokens, 160))
        ff.set_num_threads(1)
        one = ff.ffn(x, up, down, gate, activation="relu2", sub_norm=gamma)
        for threads in (2, 3, 5):
            ff.set_num_threads(threads)
            np.testing.assert_array_equal(ff.ffn(x, up, down, gate, activation="relu2", sub_norm=gamma), one)


def test_refused():
    rng = np.random.default_rng(8)
    up, gate, w_down = layer(rng, 48, 100, 37)
    down = ff.pack(w_down, "f32")
    x = normal(rng, (3, 48))
    gamma = np.ones(100, np.float32)
    for keywords, text in (
        ({"sub_norm": np.ones(99, np.float32)}, r"sub_norm has shape \(99,\), expected \(100,\) from w_up \(100, 48\)"),
        ({"sub_norm": np.ones((1, 100), np.float32)}, r"sub_norm has shape \(1, 100\)"),
        ({"sub_norm": np.ones(100)}, "sub_norm has dtype f64, expected f32, f16 or bf16"),
        ({"sub_norm": np.ones(200, np.float32)[::2]}, "sub_norm has stride 2, expected 1"),
        ({"sub_norm": gamma, "sub_norm_eps": -1e-5}, "sub_norm_eps is -0.000010, expected a number from 0"),
        ({"sub_norm": gamma, "sub_norm_eps": np.nan}, "sub_norm_eps is nan"),
        ({"sub_norm": gamma, "sub_norm_eps": np.inf}, "sub_norm_eps is inf"),
        ({"sub_norm": gamma[:100], "out": np.lib.stride_tricks.as_strided(gamma, (3, 37), (148, 4))}, "out"),
    ):
        with pytest.raises(ValueError, match=text):
            ff.ffn(x, up, down, gate, activation="silu", **keywords)
    with pytest.raises(TypeError, match="sub_norm_eps has type str"):
        ff.ffn(x, up, down, gate, activation="silu", sub_norm=gamma, sub_norm_eps="1e-5")


def test_workspace():
    """The query knows that rows are kept."""
    rng = np.random.default_rng(9)
    up, gate, w_down = layer(rng, 48, 1000, 37)
    gamma = np.ones(1000, np.float32)
    x = normal(rng, (64, 48))
    plain = {}
    for fmt in ("f32", "ternary"):
        down = pack(w_down, fmt)
        plain[fmt] = ff.ffn_workspace(x, up, down, gate, threads=1)
        kept = ff.ffn_workspace(x, up, down, gate, sub_norm=gamma, threads=1)
        assert (kept == plain[fmt]) == (fmt == "ternary")
        assert kept >= plain[fmt]


# ---- BitNet's layers ----

MODES = {864: "kron", 512: "pow2", 608: "block", 1728: "block"}


def codes_bounded(x, packed, act):
    return tolerance.linear(x, packed_values(packed), "ternary" if act == "int8" else "ternary-act4")


@pytest.mark.parametrize(
    ("d_model", "d_ff", "tokens"), [(128, 864, 1), (128, 512, 9), (96, 608, 33), (160, 864, 70), (64, 1728, 2)]
)
@pytest.mark.parametrize(
    ("name", "act", "act_down", "transform", "norm"),
    [
        ("2B4T", "int8", "int8", False, True),
        ("v2", "int4", "int4", True, True),
        ("v2-int8", "int8", "int8", True, False),
        ("a4.8", "int4", "int8", False, True),
    ],
)
def test_whole_layers(name, act, act_down, transform, norm, d_model, d_ff, tokens):
    """gate, up → relu² ⊙ → sub-norm → H → quantise → down, each step against float64 with the bounds of those before it."""
    if SMALL and d_ff > 1000:
        pytest.skip("large")
    rng = np.random.default_rng([d_model, d_ff])
    up, gate = (ff.pack(normal(rng, (d_ff, d_model)), "ternary", act=act) for _ in range(2))
    mode = MODES[d_ff] if transform else "none"
    down = ff.pack(normal(rng, (d_model, d_ff)), "ternary", act=act_down, hadamard=mode, rotated=transform or None)
    gamma = np.abs(normal(rng, d_ff)) if norm else None
    for dtype in ("f32", "bf16"):
        x = normal(rng, (tokens, d_model), dtype)
        x[1:2] = 0
        exact = tolerance.Bounded.exact(x.astype(np.float64))
        gated = tolerance.activate(codes_bounded(exact, gate, act), "relu2")
        hidden = tolerance.multiply(gated, codes_bounded(exact, up, act))
        if norm:
            hidden = tolerance.rms_norm(hidden, gamma.astype(np.float64))
        expected = codes_bounded(transformed(hidden, mode), down, act_down)
        y = np.empty((tokens, d_model), np.float32)
        ff.ffn(x, up, down, gate, activation="relu2", sub_norm=gamma, out=y)
        check(y, expected, "f32")
        # And the paper's formulas without any bound in between: most codes are the same.
        weights = [packed_values(w) for w in (gate, up, down)]
        h = None
        if transform:
            h = ff.hadamard(np.eye(d_ff, dtype=np.float32), mode).T.astype(np.float64)
        paper = bitlinear.ffn(
            x.astype(np.float64), *weights, gamma=gamma, act=act, act_down=act_down, h=h, activation="relu2"
        )
        assert np.abs(y - paper).mean() < 5e-3 * np.abs(paper).mean()


def test_published_width():
    """The hidden width of 2B4T."""
    if SMALL:
        pytest.skip("large")
    rng = np.random.default_rng(11)
    up, gate = (ff.pack(normal(rng, (6912, 320)), "ternary") for _ in range(2))
    gamma = np.abs(normal(rng, 6912))
    x = normal(rng, (3, 320))
    down = ff.pack(normal(rng, (320, 6912)), "ternary")
    paper = bitlinear.ffn(x.astype(np.float64), *(packed_values(w) for w in (gate, up, down)), gamma=gamma)
    y = ff.ffn(x, up, down, gate, activation="relu2", sub_norm=gamma)
    assert np.abs(y - paper).mean() < 5e-3 * np.abs(paper).mean()


@pytest.mark.parametrize("dtype", list(DTYPES))
def test_dtypes_of_gamma(dtype):
    rng = np.random.default_rng(12)
    up, gate, w_down = layer(rng, 48, 105, 37)
    down = ff.pack(w_down, "ternary")
    gamma = normal(rng, 105, dtype)
    x = normal(rng, (9, 48))
    y = ff.ffn(x, up, down, gate, activation="relu2", sub_norm=gamma)
    np.testing.assert_array_equal(ff.ffn(x, up, down, gate, activation="relu2", sub_norm=gamma.astype(np.float32)), y)


@pytest.mark.parametrize("fmt", ["f32", "bf16", "ternary"])
def test_moe(fmt):
    """Experts with norms of their own are ffn() with them; so are shared ones."""
    rng = np.random.default_rng(13)
    experts, d_model, d_ff = 4, 48, 100
    plain = {n: normal(rng, (experts, *s)) for n, s in (("w_up", (d_ff, d_model)), ("w_gate", (d_ff, d_model)))}
    plain["w_down"] = normal(rng, (experts, 37, d_ff))
    gamma = normal(rng, (experts, d_ff + 3))[:, 1:-2]
    stacks = {n: pack(w, fmt) for n, w in plain.items()}
    for tokens in (1, 9, 70):
        x = normal(rng, (tokens, d_model))
        ids = rng.integers(0, experts, (tokens, 2)).astype(np.int32)
        weights = rng.uniform(0, 1, (tokens, 2)).astype(np.float32)
        one = [
            ff.ffn(
                x,
                *(pack(plain[n][e], fmt) for n in ("w_up", "w_down", "w_gate")),
                activation="relu2",
                sub_norm=np.ascontiguousarray(gamma[e]),
                sub_norm_eps=1e-3,
            )
            for e in range(experts)
        ]
        expected = sum(weights[:, j, None] * np.array([one[ids[t, j]][t] for t in range(tokens)]) for j in range(2))
        shared = ff.SharedExperts(
            **{n: pack(w[:1], fmt) for n, w in plain.items()}, sub_norm=np.ascontiguousarray(gamma[:1])
        )
        keywords = {"activation": "relu2", "sub_norm": gamma, "sub_norm_eps": 1e-3}
        y = ff.moe(x, ids, weights, **stacks, **keywords)
        limit = 2e-2 if fmt == "bf16" else 1e-4  # experts see other numbers of rows: other orders of sums
        np.testing.assert_allclose(y, expected, rtol=limit, atol=limit * np.abs(expected).max())
        y = ff.moe(x, ids, weights, **stacks, **keywords, shared=shared)
        np.testing.assert_allclose(y, expected + one[0], rtol=limit, atol=limit * np.abs(expected).max())
        lists = {n: [pack(w[:1], fmt), pack(w[1:], fmt)] for n, w in plain.items()}
        several = ff.moe(
            x, ids, weights, **lists, activation="relu2", sub_norm=[gamma[:1], gamma[1:]], sub_norm_eps=1e-3
        )
        np.testing.assert_allclose(several, expected, rtol=limit, atol=limit * np.abs(expected).max())
        plan = {"threads": 1, "w_gate": stacks["w_gate"]}
        kept = ff.moe_workspace(x, ids, stacks["w_up"], stacks["w_down"], sub_norm=gamma, **plan)
        assert kept >= ff.moe_workspace(x, ids, stacks["w_up"], stacks["w_down"], **plan)
    for wrong, text in (
        (gamma[:3], r"sub_norm has shape \(3, 100\), expected \(4, 100\) from w_up"),
        (gamma.astype(np.float64), "sub_norm has dtype f64"),
        (np.ones((4, 200), np.float32)[:, ::2], "sub_norm has stride 2 in its last dimension"),
    ):
        with pytest.raises(ValueError, match=text):
            ff.moe(x, ids, weights, **stacks, activation="relu2", sub_norm=wrong)
    with pytest.raises(ValueError, match="sub_norm_eps is -1"):
        ff.moe(x, ids, weights, **stacks, activation="relu2", sub_norm=gamma, sub_norm_eps=-1)
