"""Low-rank layers against the float64 oracle: every format of the factors, few tokens (phases) and many (streaming)."""

from dataclasses import dataclass, field

import numpy as np
import pytest

import fastffn as ff
from kernel_support import ACTIVATIONS, DTYPES, SMALL, check, normal
from reference import lowrank, tolerance

FACTORS = ("f32", "f16", "bf16", "int8")
factors = pytest.mark.parametrize("fmt", FACTORS)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
KINDS = ("plain", "gated", "shared")
# Around the 16 columns of a panel and the 256 of a block.
EDGES = (1, 17, 255, 257) if SMALL else (1, 15, 16, 17, 64, 255, 256, 257, 513)


@pytest.fixture(autouse=True)
def default_threads():
    yield
    ff.set_num_threads(0)


def factor_values(plain, fmt, blocked):
    """The values that a packed factor stands for: u is packed in blocks of 256 columns, v whole."""
    step = lowrank.BLOCK if blocked else plain.shape[1]
    parts = [plain[:, i : i + step] for i in range(0, plain.shape[1], step)]
    return np.concatenate([np.asarray(ff.unpack(ff.pack(part, fmt), "f32")) for part in parts], 1).astype(np.float64)


def random_pair(rng, out_features, in_features, rank):
    return (
        normal(rng, (rank, in_features), scale=in_features**-0.5),
        normal(rng, (out_features, rank), scale=rank**-0.5),
    )


def pair_values(pair, fmt):
    return factor_values(pair[0], fmt, True), factor_values(pair[1], fmt, False)


@dataclass
class Layer:
    """A random low-rank layer: packed, and as the float64 values it stands for."""

    fmt: str
    d_model: int
    d_ff: int
    ranks: tuple  # of up, down, gate
    kind: str = "plain"
    bias: str | None = None
    activation: str = "gelu"
    d_out: int = 0
    seed: int = 0
    plain: dict = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng([self.seed, self.d_model, self.d_ff])
        d_out = self.d_out or self.d_model
        self.plain = {
            "w_up": random_pair(rng, self.d_ff, self.d_model, self.ranks[0]),
            "w_down": random_pair(rng, d_out, self.d_ff, self.ranks[1]),
        }
        if self.kind == "gated":
            self.plain["w_gate"] = random_pair(rng, self.d_ff, self.d_model, self.ranks[2])
        if self.kind == "shared":
            self.plain["w_gate"] = (
                self.plain["w_up"][0],
                normal(rng, (self.d_ff, self.ranks[0]), scale=self.ranks[0] ** -0.5),
            )
        self.packed = {name: ff.pack(pair, "lowrank", factors=self.fmt) for name, pair in self.plain.items()}
        self.biases = {}
        if self.bias:
            self.biases = {
                "b" + name[1:]: normal(rng, pair[1].shape[0], self.bias) for name, pair in self.plain.items()
            }

    def __call__(self, x, **keywords):
        return ff.ffn(x, **self.packed, **self.biases, activation=self.activation, **keywords)

    def bounded(self, x):
        pairs = {name[2:]: pair_values(pair, self.fmt) for name, pair in self.plain.items()}
        biases = {name: bias.astype(np.float64) for name, bias in self.biases.items()}
        return lowrank.bounded_ffn(x.astype(np.float64), fmt=self.fmt, activation=self.activation, **pairs, **biases)

    def check(self, x):
        check(self(x), self.bounded(x), str(x.dtype))


@factors
@dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bias", [None, "same"], ids=["", "bias"])
def test_every_kind(fmt, dtype, activation, kind, bias):
    layer = Layer(fmt, 50, 70, (9, 20, 17), kind, dtype if bias else None, activation)
    rng = np.random.default_rng(1)
    for tokens in (1, 3, 21):
        layer.check(normal(rng, (tokens, 50), dtype))


@factors
@pytest.mark.parametrize("kind", KINDS)
def test_tokens(fmt, kind):
    """Few rows, many rows, several tiles; the last tile ragged, and of few rows."""
    rng = np.random.default_rng(2)
    layer = Layer(fmt, 70, 300, (20, 33, 5), kind, "f32", "silu")
    few = (1, 2, 6, 7, 16, 17) if SMALL else (*range(1, 19), 31, 32, 33, 48, 63, 64, 65, 100)
    many = (257, 290) if SMALL else (128, 129, 255, 256, 257, 287, 289, 300, 512, 1023, 1025, 1090)
    for tokens in (*few, *many):
        layer.check(normal(rng, (tokens, 70), "bf16"))


@factors
def test_many_kept_columns(fmt):
    """So many hidden columns that streaming begins at fewer tokens."""
    layer = Layer(fmt, 20, 12000, (3, 5, 2), "gated", None, "silu")
    rng = np.random.default_rng(3)
    for tokens in (2, 100) if SMALL else (2, 100, 145, 300):
        layer.check(normal(rng, (tokens, 20)))


@factors
@pytest.mark.parametrize("tokens", [1, 5, 40, 270])
def test_dimensions(fmt, tokens):
    rng = np.random.default_rng(4)
    for i, d_model in enumerate(EDGES):
        for j, d_ff in enumerate(EDGES):
            if (i + 2 * j + tokens) % (3 if tokens > 5 else 2):
                continue
            ranks = tuple(EDGES[(i + k * j + k) % len(EDGES)] for k in (1, 2, 3))
            kind = KINDS[(i + j) % 3]
            d_out = EDGES[(i + 3 * j) % len(EDGES)]
            layer = Layer(fmt, d_model, d_ff, ranks, kind, "f32", "gelu_tanh", d_out)
            layer.check(normal(rng, (tokens, d_model)))


@factors
@pytest.mark.parametrize("tokens", [1, 6, 7, 40, 300])
def test_linear(fmt, tokens):
    rng = np.random.default_rng(5)
    for d_in, d_out, rank in ((70, 50, 9), (300, 33, 1), (17, 600, 40), (513, 257, 300), (1, 1, 1)):
        pair = random_pair(rng, d_out, d_in, rank)
        bias = normal(rng, d_out)
        x = normal(rng, (tokens, d_in), "f16")
        y = ff.linear(x, ff.pack(pair, "lowrank", factors=fmt), bias)
        exact = tolerance.Bounded.exact(x.astype(np.float64))
        check(y, lowrank.bounded_pair(exact, *pair_values(pair, fmt), fmt, bias.astype(np.float64)), "f16")


@factors
def test_no_tokens(fmt):
    layer = Layer(fmt, 33, 47, (4, 5, 6), "gated", "f32")
    for shape in ((0, 33), (0, 5, 33), (5, 0, 33)):
        assert layer(np.zeros(shape, np.float32)).shape == shape


@factors
@pytest.mark.parametrize("tokens", [1, 6, 40, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_any_number_of_threads(fmt, tokens, kind):
    layer = Layer(fmt, 257, 771, (40, 97, 12), kind, "f32", "silu", d_out=390)
    x = normal(np.random.default_rng(6), (tokens, 257), "bf16")
    ff.set_num_threads(1)
    expected = layer(x)
    layer.check(x)
    for threads in range(2, 9):
        ff.set_num_threads(threads)
        np.testing.assert_array_equal(layer(x), expected)


def test_full_rank_is_the_dense_layer():
    rng = np.random.default_rng(7)
    w_up, w_down = normal(rng, (90, 40), scale=40**-0.5), normal(rng, (40, 90), scale=90**-0.5)
    pairs = []
    for w in (w_up, w_down):
        u, s, vt = np.linalg.svd(w.astype(np.float64), full_matrices=False)
        pairs.append(((s[:, None] * vt).astype(np.float32), u.astype(np.float32)))
    for tokens in (1, 20, 300):
        x = normal(rng, (tokens, 40))
        dense = ff.ffn(x, ff.pack(w_up, "f32"), ff.pack(w_down, "f32"), activation="gelu")
        low = ff.ffn(x, *(ff.pack(pair, "lowrank", factors="f32") for pair in pairs), activation="gelu")
        assert np.linalg.norm(low - dense) < 3e-6 * np.linalg.norm(dense)


@factors
def test_gate_and_up_are_not_interchangeable(fmt):
    layer = Layer(fmt, 50, 70, (9, 20, 17), "gated", None, "silu")
    x = normal(np.random.default_rng(8), (5, 50))
    layer.check(x)
    swapped = dict(layer.packed, w_up=layer.packed["w_gate"], w_gate=layer.packed["w_up"])
    y = ff.ffn(x, **swapped, activation="silu")
    assert np.linalg.norm(y - layer(x)) > 0.1 * np.linalg.norm(y)
    # One projection for both: the v of each still goes to its own side.
    shared = Layer(fmt, 50, 70, (9, 20, 17), "shared", None, "silu")
    shared.check(x)
    swapped = dict(shared.packed, w_up=shared.packed["w_gate"], w_gate=shared.packed["w_up"])
    assert np.linalg.norm(ff.ffn(x, **swapped, activation="silu") - shared(x)) > 0.1 * np.linalg.norm(y)


@factors
@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_shared_projection_is_the_separate_one(fmt, tokens):
    """The same bits as with a projection of its own: a u that differs in one element that x does not have."""
    shared = Layer(fmt, 257, 70, (20, 20, 20), "shared", "f32", "silu")
    u = shared.plain["w_gate"][0].copy()
    u[3, 256] += 1
    x = normal(np.random.default_rng(9), (tokens, 257))
    x[:, 256] = 0
    packed = dict(shared.packed, w_gate=ff.pack((u, shared.plain["w_gate"][1]), "lowrank", factors=fmt))
    y = ff.ffn(x, **packed, **shared.biases, activation="silu")
    np.testing.assert_array_equal(y, shared(x))
    a, b = (ff.ffn_workspace(x, p["w_up"], p["w_down"], p["w_gate"], threads=1) for p in (shared.packed, packed))
    assert a < b  # so one projection was really left out


@factors
@pytest.mark.parametrize("dense", ["w_up", "w_gate", "w_down"])
def test_mixed_with_dense_weights(fmt, dense):
    rng = np.random.default_rng(10)
    layer = Layer("f32", 60, 300, (9, 20, 17), "gated", "f32", "silu")
    packed = dict(layer.packed)
    pair = layer.plain[dense]
    packed[dense] = ff.pack(pair[1].astype(np.float64) @ pair[0], fmt)
    limit = {"f32": 3e-6, "f16": 2e-3, "bf16": 2e-2, "int8": 4e-2}[fmt]
    for tokens in (1, 6, 40, 300):
        x = normal(rng, (tokens, 60))
        y = ff.ffn(x, **packed, **layer.biases, activation="silu")
        assert np.linalg.norm(y - layer(x)) < limit * np.linalg.norm(y)


@factors
@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_nan_stays_in_its_token(fmt, tokens):
    layer = Layer(fmt, 50, 300, (9, 20, 17), "gated", "f32", "silu")
    x = normal(np.random.default_rng(11), (tokens, 50))
    expected = layer(x)
    bad = tokens // 2
    x[bad, 17] = np.nan
    y = layer(x)
    assert np.isnan(y[bad]).all()
    others = np.arange(tokens) != bad
    np.testing.assert_array_equal(y[others], expected[others])


@pytest.mark.parametrize("tokens", [1, 40, 300])
def test_sums_beyond_f16(tokens):
    """s = h · u2ᵀ may pass 65504: it stays in f32."""
    u, v = np.full((1, 64), 100, np.float32), np.full((8, 1), 1e-6, np.float32)
    x = np.full((tokens, 64), 100, np.float16)
    y = ff.linear(x, ff.pack((u, v), "lowrank", factors="f16"))
    np.testing.assert_allclose(y.astype(np.float32), 640000 * 1e-6, rtol=0.1)


@factors
@pytest.mark.parametrize("tokens", [3, 70, 300])
def test_strided(fmt, tokens):
    """Rows of x and out apart from each other, in runs that do not fit blocks of 16."""
    layer = Layer(fmt, 50, 70, (9, 20, 17), "gated", "f32", "silu")
    rng = np.random.default_rng(12)
    wide = normal(rng, (3, tokens, 60), "bf16")
    x = wide[:, :, 5:55]
    expected = layer(np.ascontiguousarray(x))
    np.testing.assert_array_equal(layer(x), expected)
    out = np.zeros((3, tokens, 61), DTYPES["bf16"])
    layer(x, out=out[:, :, 11:])
    np.testing.assert_array_equal(out[:, :, 11:], expected)
    assert not out[:, :, :11].astype(np.float32).any()


@factors
def test_stacks(fmt):
    rng = np.random.default_rng(13)
    u, v = normal(rng, (3, 7, 300)), normal(rng, (3, 40, 7))
    stack = ff.pack((u, v), "lowrank", factors=fmt)
    assert ff.info(stack).shape == (3, 40, 300)
    for i, product in enumerate(ff.unpack(stack)):
        one = pair_values((u[i], v[i]), fmt)
        np.testing.assert_allclose(product, one[1] @ one[0], rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="stack of 3"):
        ff.linear(normal(rng, (2, 300)), stack)


@factors
@pytest.mark.parametrize("seed", range(6 if SMALL else 30))
def test_random_layers(fmt, seed):
    """Whatever nobody thought of."""
    rng = np.random.default_rng([14, seed])
    tokens, d_model, d_ff, d_out = (int(np.exp(rng.uniform(0, np.log(limit)))) for limit in (700, 400, 700, 400))
    ranks = tuple(int(np.exp(rng.uniform(0, np.log(300)))) for _ in range(3))
    dtype, bias = rng.choice(list(DTYPES), 2)
    activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
    layer = Layer(fmt, d_model, d_ff, ranks, KINDS[seed % 3], rng.choice([bias, None]), activation, d_out, seed)
    layer.check(normal(rng, (tokens, d_model), dtype, scale=float(np.exp(rng.uniform(-2, 1)))))


@factors
@pytest.mark.parametrize("tokens", [1, 50])
def test_experts(fmt, tokens):
    """Stacks of pairs as experts: the sum of the layers one by one."""
    rng = np.random.default_rng(15)
    experts = [Layer(fmt, 40, 300, (9, 12, 7), "gated", None, "silu", seed=seed) for seed in range(3)]
    stacks = {
        name: ff.pack(tuple(np.stack([e.plain[name][i] for e in experts]) for i in (0, 1)), "lowrank", factors=fmt)
        for name in experts[0].plain
    }
    x = normal(rng, (tokens, 40))
    ids = rng.integers(0, 3, (tokens, 2)).astype(np.int32)
    weights = rng.uniform(0.1, 1, (tokens, 2)).astype(np.float32)
    y = ff.moe(x, ids, weights, **stacks, activation="silu")
    each = np.stack([layer(x) for layer in experts])
    expected = sum(weights[:, j, None] * each[ids[:, j], np.arange(tokens)] for j in range(2))
    limit = {"f32": 3e-6, "f16": 3e-6, "bf16": 5e-3, "int8": 2e-2}[fmt]
    assert np.linalg.norm(y - expected) < limit * np.linalg.norm(expected)
