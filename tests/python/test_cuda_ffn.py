"""What ffn does between its products on devices: sub_norm, segments, gate first; see cuda_support.py."""

import numpy as np
import pytest

import fastffn as ff
from cuda_support import DEVICE_FORMATS
from kernel_support import SMALL, check, normal, packed_values
from reference import tolerance
from reference.formats import pack_arguments, prepare_weights
from test_kernels_gate_first import ROWS, gate_bias
from test_kernels_sub_norm import hidden_of

TOKENS = (1, 20) if SMALL else (1, 5, 20, 40)
D_MODEL, D_OUT = 48, 37


def on_cpu(w, fmt):
    name, options = pack_arguments(fmt)
    return ff.pack(prepare_weights(fmt, w), name, **options)


class Layer:
    """Plain weights on both sides."""

    def __init__(self, cuda, rng, d_ff, down, fmt="f32", gated=True):
        shapes = {"w_up": (d_ff, D_MODEL), "w_down": (D_OUT, d_ff)} | ({"w_gate": (d_ff, D_MODEL)} if gated else {})
        plain = {name: normal(rng, shape, scale=shape[1] ** -0.5) for name, shape in shapes.items()}
        formats = {name: down if name == "w_down" else fmt for name in plain}
        self.host = {name: on_cpu(w, formats[name]) for name, w in plain.items()}
        self.device = {name: cuda.weight(w, formats[name]) for name, w in plain.items()}


@pytest.mark.parametrize("down", DEVICE_FORMATS)
def test_sub_norm(cuda, down):
    rng = np.random.default_rng(1)
    for d_ff, gated, dtype in ((100, True, "f32"), (257, False, "bf16"), (64, True, "f16")):
        if dtype not in cuda.dtypes:
            continue
        layer = Layer(cuda, rng, d_ff, down, gated=gated)
        gamma = normal(rng, d_ff, dtype)
        for tokens in TOKENS:
            x = normal(rng, (tokens, D_MODEL))
            hidden = hidden_of(x, layer.host["w_up"], layer.host.get("w_gate"), "f32", "relu2")
            hidden = tolerance.rms_norm(hidden, gamma.astype(np.float64))
            expected = tolerance.linear(hidden, packed_values(layer.host["w_down"]), down)
            y = ff.ffn(cuda.put(x), **layer.device, activation="relu2", sub_norm=cuda.put(gamma))
            check(cuda.get(y), expected, "f32")


@pytest.mark.parametrize("down", ["f32", "f16", "bf16", "int8", "ternary"])
def test_relu2_beyond_f16(cuda, down):
    rng = np.random.default_rng(2)
    layer = Layer(cuda, rng, 100, down)
    gamma = normal(rng, 100)
    for scale in (1e3, 1e5, 1e9):
        x = normal(rng, (5, D_MODEL), scale=scale)
        hidden = hidden_of(x, layer.host["w_up"], layer.host["w_gate"], "f32", "relu2")
        hidden = tolerance.rms_norm(hidden, gamma.astype(float))
        expected = tolerance.linear(hidden, packed_values(layer.host["w_down"]), down)
        y = ff.ffn(cuda.put(x), **layer.device, activation="relu2", sub_norm=cuda.put(gamma))
        check(cuda.get(y), expected, "f32")


@pytest.mark.parametrize("fmt", ["f16", "sparse24-f16", "lowrank"])
def test_hidden_beyond_f16(cuda, fmt):
    """Kept in f32 for x that is not f16; for f16 x a device's f16 ends at 65504, and other tokens do not notice."""
    rng = np.random.default_rng(9)
    shapes = {"w_up": (100, D_MODEL), "w_down": (D_OUT, 100)}
    weights = {name: normal(rng, shape, scale=shape[1] ** -0.5) for name, shape in shapes.items()}
    if fmt == "lowrank":
        factors = {n: (normal(rng, (16, w.shape[1]), scale=0.2), normal(rng, (w.shape[0], 16), scale=0.2)) for n, w in weights.items()}  # fmt: skip
        host = {name: ff.pack(pair, "lowrank", factors="f16") for name, pair in factors.items()}
        there = {name: cuda.pack(pair, "lowrank", factors="f16") for name, pair in factors.items()}
    else:
        host = {name: on_cpu(w, fmt) for name, w in weights.items()}
        there = {name: cuda.weight(w, fmt) for name, w in weights.items()}
    for dtype, tokens in ((dtype, tokens) for dtype in cuda.dtypes for tokens in (5, 20)):
        x = normal(rng, (tokens, D_MODEL), dtype)
        x[2] *= 1000 if dtype == "f16" else 3000
        y = cuda.get(ff.ffn(cuda.put(x), **there, activation="relu2"))
        wanted = ff.ffn(x, **host, activation="relu2").astype(np.float64)
        rest = np.arange(tokens) != 2
        limit = {"f32": 4e-6, "f16": 4e-3, "bf16": 1e-2}[dtype]
        for rows in (rest,) if dtype == "f16" else (rest, ~rest):
            difference = np.abs(y[rows].astype(np.float64) - wanted[rows]).max(1)
            assert (difference <= limit * np.abs(wanted[rows]).max(1)).all()
        if dtype == "f16":
            assert not np.isfinite(y[2].astype(np.float64)).all()


# Runs of a few columns, slices of lines of 64, all.
SEGMENTS = (
    [(0, 1)],
    [(0, 300)],
    [(3, 5), (8, 7), (250, 12), (511, 2)],
    [(257, 255)],
    [(10, 20), (560, 40)],
    [(0, 600)],
)


@pytest.mark.parametrize("fmt", ["f32", "f16", "bf16", "int8", "ternary", "int4-zp", "sparse24-bf16"])
@pytest.mark.parametrize("norm", [False, True], ids=["", "sub_norm"])
def test_segments(cuda, fmt, norm):
    """Those of w_up and w_gate are products of their own; γ where none is may be anything."""
    rng = np.random.default_rng(3)
    d_ff = 600
    layer = Layer(cuda, rng, d_ff, fmt)
    values = packed_values(layer.host["w_down"])
    gamma = normal(rng, d_ff)
    for segments in SEGMENTS[:4] if SMALL else SEGMENTS:
        columns = np.concatenate([np.arange(s, s + n) for s, n in segments])
        poisoned = np.full(d_ff, np.nan, np.float32)
        poisoned[columns] = gamma[columns]
        for tokens in (1, 20):
            x = normal(rng, (tokens, D_MODEL))
            hidden = hidden_of(x, layer.host["w_up"], layer.host["w_gate"], "f32", "silu")
            used = tolerance.Bounded(hidden.value[:, columns], hidden.error[:, columns])
            if norm:
                used = tolerance.rms_norm(used, gamma[columns].astype(np.float64))
            whole = tolerance.Bounded(np.zeros((tokens, d_ff)), np.zeros((tokens, d_ff)))
            whole.value[:, columns], whole.error[:, columns] = used.value, used.error
            keywords = {"sub_norm": cuda.put(poisoned)} if norm else {}
            y = ff.ffn(cuda.put(x), **layer.device, activation="silu", segments=segments, **keywords)
            check(cuda.get(y), tolerance.linear(whole, values, fmt), "f32")


@pytest.mark.parametrize("fmt", ["bf16", "int8", "ternary", "int4-zp"])
def test_segments_of_every_w_up(cuda, fmt):
    """The layer on the CPU, whose own test holds it against slices."""
    rng = np.random.default_rng(4)
    layer = Layer(cuda, rng, 600, "f32", fmt)
    for segments in SEGMENTS:
        for tokens in TOKENS:
            x = normal(rng, (tokens, D_MODEL))
            y = cuda.get(ff.ffn(cuda.put(x), **layer.device, activation="silu", segments=segments))
            wanted = ff.ffn(x, **layer.host, activation="silu", segments=segments)
            np.testing.assert_allclose(y, wanted, rtol=0, atol=4e-6 * np.abs(wanted).max() + 1e-7)


@pytest.mark.parametrize("fmt", ROWS)
def test_gate_first(cuda, fmt):
    """All gates, some or none: what the dense order gives, and the CPU."""
    rng = np.random.default_rng(5)
    d_ff = 150
    layer = Layer(cuda, rng, d_ff, "f32", fmt)
    b_up = normal(rng, d_ff)
    for share in (0.0, 0.3, 1.0):
        b_gate = gate_bias(rng, d_ff, share)
        biases = {"b_up": b_up, "b_gate": b_gate}
        there = {name: cuda.put(b) for name, b in biases.items()}
        for tokens in (1, 3, 8, 9):
            x = normal(rng, (tokens, D_MODEL))
            results = [
                cuda.get(ff.ffn(cuda.put(x), **layer.device, **there, activation="relu2", gate_first=order))
                for order in (True, "auto", False)
            ]
            limit = 4e-6 * np.abs(results[2]).max() + 1e-7
            for y in results[:2]:
                np.testing.assert_allclose(y, results[2], rtol=0, atol=limit)
            if not fmt.endswith("act4") and "group" not in fmt:  # means of magnitudes are summed in another order there
                wanted = ff.ffn(x, **layer.host, **biases, activation="relu2", gate_first=True)
                np.testing.assert_allclose(results[0], wanted, rtol=0, atol=limit)


def test_errors_are_the_cpus(cuda):
    rng = np.random.default_rng(6)
    layer = Layer(cuda, rng, 64, "f32", "ternary")
    x = normal(rng, (2, D_MODEL))
    for keywords in (
        {"gate_first": True},
        {"gate_first": True, "activation": "silu"},
        {"segments": [(60, 5)]},
        {"segments": []},
        {"segments": [(8, 8), (0, 4)]},
        {"sub_norm": np.ones(63, np.float32)},
        {"sub_norm": np.ones(64, np.float32), "sub_norm_eps": -1.0},
    ):
        keywords = {"activation": "relu2"} | keywords
        messages = []
        for array, weights, place in ((x, layer.host, lambda a: a), (cuda.put(x), layer.device, cuda.put)):
            placed = {name: place(v) if name == "sub_norm" else v for name, v in keywords.items()}
            with pytest.raises(ValueError) as error:
                ff.ffn(array, **weights, **placed)
            messages.append(str(error.value))
        assert messages[0] == messages[1]
