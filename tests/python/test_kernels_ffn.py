"""ffn against the float64 oracle: every format, dtype, activation, gate and bias, at many shapes."""

import numpy as np
import pytest

from kernel_support import ACTIVATIONS, DTYPES, FORMATS, SMALL, Layer, arithmetic, normal, pack, prepare_weights
from reference.formats import CODES

formats = pytest.mark.parametrize("fmt", FORMATS)
HOLDING = [fmt for fmt in FORMATS if fmt not in CODES]  # formats that hold any weights well
dtypes = pytest.mark.parametrize("dtype", DTYPES)

# Around the 16 columns of a panel, the 16 rows and 32 or 64 depths of an AMX tile, the 64 bytes of a cache line.
EDGES = (1, 15, 17, 33, 64, 65, 257) if SMALL else (1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 129, 255, 257)
FEW_TOKENS = (1, 2, 5, 16, 17) if SMALL else tuple(range(1, 21))
MANY_TOKENS = (33, 128) if SMALL else (31, 32, 33, 48, 64, 100, 128, 129, 257, 300)


@formats
@dtypes
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("bias", [None, "same"], ids=["", "bias"])
def test_every_kind(fmt, dtype, activation, gated, bias):
    layer = Layer(fmt, 50, 70, gated, dtype if bias else None, activation)
    rng = np.random.default_rng(1)
    for tokens in (1, 3, 21):
        layer.check(normal(rng, (tokens, 50), dtype))


@formats
@dtypes
@pytest.mark.parametrize("bias", [None, "same"], ids=["", "bias"])
def test_clamped_swiglu(fmt, dtype, bias):
    """GPT-OSS's activation, on inputs wide enough for both clamps."""
    layer = Layer(fmt, 50, 70, True, dtype if bias else None, "swiglu_clamped")
    rng = np.random.default_rng(10)
    for tokens in (1, 3, 21):
        layer.check(normal(rng, (tokens, 50), dtype, scale=5))


@formats
@dtypes
def test_few_tokens(fmt, dtype):
    rng = np.random.default_rng(2)
    for d_model, d_ff, gated in ((64, 96, True), (33, 47, False)):
        layer = Layer(fmt, d_model, d_ff, gated, "f32", "silu")
        for tokens in FEW_TOKENS:
            layer.check(normal(rng, (tokens, d_model), dtype))


@formats
@dtypes
def test_many_tokens(fmt, dtype):
    rng = np.random.default_rng(3)
    for d_model, d_ff, gated in ((64, 128, True), (65, 130, False)):
        layer = Layer(fmt, d_model, d_ff, gated, None, "gelu")
        for tokens in MANY_TOKENS:
            layer.check(normal(rng, (tokens, d_model), dtype))


@formats
@pytest.mark.parametrize("tokens", [1, 6, 37])
def test_dimensions(fmt, tokens):
    rng = np.random.default_rng(4)
    for i, d_model in enumerate(EDGES):
        for j, d_ff in enumerate(EDGES):
            layer = Layer(
                fmt, d_model, d_ff, (i + j) % 2 == 0, "f32", "gelu_tanh", d_out=EDGES[(i + 2 * j) % len(EDGES)]
            )
            layer.check(normal(rng, (tokens, d_model)))


@formats
@pytest.mark.parametrize("tokens", [1, 16, 130])
@pytest.mark.skipif(SMALL, reason="FASTFFN_TEST_SIZE=small")
def test_real_dimensions(fmt, tokens):
    rng = np.random.default_rng(5)
    for d_model, d_ff, gated, activation in (
        (768, 3072, False, "gelu"),
        (576, 1536, True, "silu"),
        (1000, 2730, True, "gelu_tanh"),
    ):
        Layer(fmt, d_model, d_ff, gated, "f32", activation).check(normal(rng, (tokens, d_model), "bf16"))


@formats
def test_a_great_many_tokens(fmt):
    layer = Layer(fmt, 3, 5, True, "f32", "silu")
    tokens = 1025 if SMALL else 65537
    layer.check(normal(np.random.default_rng(6), (tokens, 3)))


@formats
@dtypes
def test_no_tokens(fmt, dtype):
    layer = Layer(fmt, 33, 47, True, "f32")
    for shape in ((0, 33), (0, 5, 33), (5, 0, 33)):
        y = layer(np.zeros(shape, DTYPES[dtype]))
        assert y.shape == shape and y.dtype == DTYPES[dtype]


@formats
@pytest.mark.parametrize("bias", DTYPES)
def test_bias_dtypes(fmt, bias):
    Layer(fmt, 40, 60, True, bias, "silu").check(normal(np.random.default_rng(7), (5, 40), "f16"))


@pytest.mark.parametrize("fmt", HOLDING)
def test_formats_mix(fmt):
    """Each weight of a layer may have a format of its own; with weights of one value the result is known."""
    import fastffn as ff

    rng = np.random.default_rng(8)
    x = normal(rng, (19, 64))
    plain = {"w_up": normal(rng, (96, 64), scale=0.125), "w_gate": normal(rng, (96, 64), scale=0.125)}
    # What every format can hold, so that they stand for the same layer.
    plain = {n: prepare_weights("sparse24-f32", w) for n, w in plain.items()}
    w_down = ff.pack(prepare_weights("sparse24-f32", normal(rng, (64, 96), scale=0.1)), "f32")
    exact = ff.ffn(x, **{n: ff.pack(w, "f32") for n, w in plain.items()}, w_down=w_down, activation="silu")
    for other in HOLDING:
        mixed = ff.ffn(x, pack(plain["w_up"], fmt), w_down, pack(plain["w_gate"], other), activation="silu")
        error = np.linalg.norm(mixed - exact) / np.linalg.norm(exact)
        # int8 has the coarsest steps: about 1% of the rms of a row, on x, up and gate.
        numbers = (arithmetic(fmt), arithmetic(other))
        assert error < (0.05 if "int8" in numbers else 0.02 if "bf16" in numbers else 0.002)
        again = ff.ffn(
            x, pack(plain["w_up"], other), pack(np.asarray(ff.unpack(w_down, "f32")), fmt), activation="relu"
        )
        expected = np.maximum(x @ plain["w_up"].T, 0) @ np.asarray(ff.unpack(w_down, "f32")).T
        assert np.linalg.norm(again - expected) / np.linalg.norm(expected) < 0.05


@formats
@pytest.mark.parametrize("seed", range(8 if SMALL else 60))
def test_random_layers(fmt, seed):
    """Whatever nobody thought of."""
    rng = np.random.default_rng([9, seed])
    dims = [int(np.exp(rng.uniform(0, np.log(limit)))) for limit in (100, 400, 700, 400)]
    tokens, d_model, d_ff, d_out = dims
    dtype, bias = rng.choice(list(DTYPES), 2)
    activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
    layer = Layer(fmt, d_model, d_ff, bool(seed % 2), rng.choice([bias, None]), activation, d_out, seed)
    layer.check(normal(rng, (tokens, d_model), dtype, scale=float(np.exp(rng.uniform(-2, 1)))))
