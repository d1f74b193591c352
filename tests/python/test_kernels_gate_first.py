"""Gate first (BitNet a4.8): against its oracle, and the same bits as the dense order."""

import numpy as np
import pytest

import fastffn as ff
from kernel_support import DTYPES, SMALL, check, normal, pack, packed_values
from reference import gate_first, tolerance

ROWS = ("ternary-rows", "ternary-rows-act4", "ternary-rows-group", "int4-rows", "int4-rows-zp", "int4-rows-zp256")


def hybrid(rng, d_model, d_ff, d_out=0):
    """Codes of a4.8's three weights, and packed: A4 inputs, rows of w_up, A8 columns of w_down."""
    shapes = {"w_gate": (d_ff, d_model), "w_up": (d_ff, d_model), "w_down": (d_out or d_model, d_ff)}
    codes = {n: rng.integers(-1, 2, s).astype(np.float32) for n, s in shapes.items()}
    scales = {"w_gate": 0.03125, "w_up": 0.0625, "w_down": 0.125}
    options = {"w_gate": {"act": "int4"}, "w_up": {"act": "int4", "order": "rows"}, "w_down": {"order": "columns"}}
    return codes, scales, {n: ff.pack(codes[n], "ternary", scale=scales[n], **options[n]) for n in shapes}


def gate_bias(rng, d_ff, share):
    """Positive for `share` of the neurons, and for one at least unless it is 0, by more than their product."""
    draws = rng.random(d_ff)
    draws[rng.integers(d_ff)] = 0
    return np.where(draws < share, 30, -30).astype(np.float32)


@pytest.mark.parametrize("activation", ["relu", "relu2"])
def test_the_paper(activation):
    """The oracle of single neurons, the dense one with its bounds, and the library."""
    rng = np.random.default_rng(1)
    for d_model, d_ff, d_out in ((40, 70, 40), (257, 301, 19), (300, 1100, 520)):
        codes, scales, packed = hybrid(rng, d_model, d_ff, d_out)
        biases = {"b_up": normal(rng, d_ff), "b_down": normal(rng, d_out)}
        for share in (None, 0.325):
            if share is not None:
                biases["b_gate"] = gate_bias(rng, d_ff, share)
            x = normal(rng, (3, d_model))
            y = ff.ffn(x, **packed, **biases, activation=activation, gate_first=True)
            exact, live = gate_first.layer(x, **codes, scales=list(scales.values()), **biases, activation=activation)
            if share is not None:
                np.testing.assert_array_equal(live, np.broadcast_to(biases["b_gate"] > 0, live.shape))
            assert 0.2 < live.mean() < 0.6
            wide = {n: b.astype(np.float64) for n, b in biases.items()}
            values = {n: packed_values(p) for n, p in packed.items()}
            linear = tolerance.linear
            given = tolerance.Bounded.exact(x)
            gate = linear(given, values["w_gate"], "ternary-act4", wide.get("b_gate"))
            up = linear(given, values["w_up"], "ternary-act4", wide["b_up"])
            hidden = tolerance.multiply(tolerance.activate(gate, activation), up)
            bounded = linear(hidden, values["w_down"], "ternary", wide["b_down"])
            assert (np.abs(exact - bounded.value) <= bounded.error).all()
            check(y, bounded, "f32")


@pytest.mark.parametrize("fmt", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits(fmt, dtype):
    """Whatever w_gate and w_down are, with all gates, some or none, few tokens or many, strided or none."""
    rng = np.random.default_rng(2)
    d_model, d_ff = 130, 301
    w = {n: normal(rng, s, scale=s[1] ** -0.5) for n, s in (("up", (d_ff, d_model)), ("down", (d_model, d_ff)))}
    w_gate = normal(rng, (d_ff, d_model), scale=d_model**-0.5)
    up = pack(w["up"], fmt)
    gamma = normal(rng, d_ff)
    kinds = ("f32", "bf16", "ternary") if SMALL else ("f32", "bf16", "int8", "ternary", "int4", fmt, "sparse24-f16")
    for gate_kind, down_kind in zip(kinds, (*kinds[1:], "ternary-columns"), strict=True):
        gate, down = pack(w_gate, gate_kind), pack(w["down"], down_kind)
        for share in (0.0, 0.003, 0.325, 1.0):
            for tokens in (0, 1, 3, 40):
                x = normal(rng, (2 * tokens, d_model + 3), dtype)[::2, :d_model]
                keywords = {"b_gate": gate_bias(rng, d_ff, share), "activation": "relu2" if tokens % 2 else "relu"}
                if tokens > 1:
                    keywords |= {"sub_norm": gamma, "b_up": normal(rng, d_ff, dtype)}
                dense, first = (ff.ffn(x, up, down, gate, **keywords, gate_first=g) for g in (False, True))
                assert first.tobytes() == dense.tobytes() and first.shape == (tokens, d_model)
                if share == 0 and tokens:
                    assert (dense == 0).all()
                elif tokens:
                    assert np.isfinite(dense.astype(np.float32)).all() and (dense != 0).any()


def test_ties():
    """A product that is exactly minus the bias is a zero gate; the smallest number above is none."""
    d_model, d_ff = 64, 48
    x = np.zeros((1, d_model), np.float32)
    x[0, 0] = 127
    codes = np.zeros((d_ff, d_model), np.float32)
    codes[:, 0] = 1
    gate = ff.pack(codes, "ternary", scale=1.0)
    up = ff.pack(codes, "ternary", scale=1.0, order="rows")
    down = ff.pack(np.ones((5, d_ff), np.float32), "f32")
    bias = np.full(d_ff, -127, np.float32)
    bias[7::8] = np.nextafter(np.float32(-127), np.float32(0))
    for first in (False, True):
        y = ff.ffn(x, up, down, gate, b_gate=bias, activation="relu", gate_first=first)
        np.testing.assert_array_equal(y, np.full((1, 5), 6 * 2.0**-17 * 127, np.float32))


def test_nan_gates_are_kept():
    rng = np.random.default_rng(3)
    _, _, packed = hybrid(rng, 90, 200)
    x = normal(rng, (3, 90))
    bias = gate_bias(rng, 200, 0.3)
    clean = ff.ffn(x, **packed, b_gate=bias, activation="relu2", gate_first=True)
    x[1, 5] = np.nan
    y = ff.ffn(x, **packed, b_gate=bias, activation="relu2", gate_first=True)
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(y[[0, 2]], clean[[0, 2]])
    bias[100] = np.nan
    assert np.isnan(ff.ffn(x, **packed, b_gate=bias, activation="relu2", gate_first=True)).all()


def test_columns_of_zeros_are_skipped():
    """What a zero does not read cannot matter: weights of those columns may be any bytes."""
    rng = np.random.default_rng(4)
    x = normal(rng, (9, 300)) * (rng.random(300) < 0.3)
    codes = rng.integers(-1, 2, (530, 300)).astype(np.float32)
    other = np.where(x[0] != 0, codes, rng.integers(-1, 2, codes.shape)).astype(np.float32)
    assert (codes != other).any()
    pair = [ff.pack(w, "ternary", scale=0.5, order="columns") for w in (codes, other)]
    for tokens in (1, 9):
        assert ff.linear(x[:tokens], pair[0]).tobytes() == ff.linear(x[:tokens], pair[1]).tobytes()


def test_arguments():
    rng = np.random.default_rng(5)
    _, _, packed = hybrid(rng, 64, 96)
    x = normal(rng, (1, 64))
    for keywords, text in (
        ({"activation": "silu"}, "activation 'relu' or 'relu2', whose zeros are exact"),
        ({"activation": "relu", "segments": [(0, 8)]}, "all hidden columns, and segments are given"),
        ({"activation": "relu", "w_gate": None}, "w_gate, which is not given"),
        ({"activation": "relu", "w_up": packed["w_gate"]}, "order='rows'"),
    ):
        with pytest.raises(ValueError, match="ffn: gate_first is asked for, and needs ") as error:
            ff.ffn(x, **(packed | keywords), gate_first=True)
        assert text in str(error.value)
        for choice in ("auto", False, None):
            ff.ffn(x, **(packed | keywords), gate_first=choice)
    with pytest.raises(ValueError, match="gate_first is 'always', expected 'auto', True or False"):
        ff.ffn(x, **packed, activation="relu", gate_first="always")
    with pytest.raises(TypeError, match="gate_first is 1, expected 'auto', True or False"):
        ff.ffn(x, **packed, activation="relu", gate_first=1)
    with pytest.raises(ValueError, match=r"in_features 65537, order 'columns' takes at most 65536"):
        ff.pack(np.zeros((1, 65537), np.float32), "ternary", order="columns")
    with pytest.raises(ValueError, match="order"):
        ff.pack(np.zeros((4, 4), np.float32), "ternary", order="diagonals")
    assert ff.info(packed["w_up"]).options["order"] == "rows"
    assert ff.info(packed["w_down"]).options["order"] == "columns"
    assert ff.info(packed["w_gate"]).options["order"] == "panels"


@pytest.mark.parametrize("depth", [4096, 65536])
def test_largest_sums_of_columns(depth):
    """Every activation ±127 and every code at its end, fields in place: nothing overflows."""
    if SMALL:
        depth = 4096
    for sign in (1, -1):
        x = np.full((1, depth), sign * 127, np.float32)
        for value in (1, -1):
            w = ff.pack(np.full((257, depth), value, np.float32), "ternary", scale=1.0, order="columns")
            np.testing.assert_array_equal(ff.linear(x, w), np.float32(sign * 127 * value * depth))
