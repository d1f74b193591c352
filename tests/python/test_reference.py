"""The oracle itself: known values, and bounds that a wrong result does not pass."""

import math

import numpy as np
import pytest

from reference import activations, ffn, formats, tolerance


def test_activations():
    x = np.array([-2.0, 0.0, 1.0, 3.0])
    np.testing.assert_allclose(activations.gelu(x), [v * (1 + math.erf(v / math.sqrt(2))) / 2 for v in x], rtol=1e-12)
    np.testing.assert_allclose(
        activations.gelu_tanh(x),
        [v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x],
        rtol=1e-12,
    )
    np.testing.assert_allclose(activations.silu(x), [v / (1 + math.exp(-v)) for v in x])
    np.testing.assert_array_equal(activations.relu2(x), [0, 0, 1, 9])
    np.testing.assert_array_equal(activations.relu(x), [0, 0, 1, 3])


@pytest.mark.parametrize("activation", activations.SLOPE)
def test_slopes(activation):
    x = np.linspace(-10, 10, 100_001)
    slopes = np.abs(np.diff(activations.ACTIVATIONS[activation](x)) / np.diff(x))
    assert slopes.max() <= activations.SLOPE[activation] * (1 + 1e-9)


def test_quantise_rows():
    codes, scale = formats.quantise_rows([[127.0, -63.5, 0.4, 0.6], [0, 0, 0, 0]])
    np.testing.assert_array_equal(codes, [[127, -64, 0, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(scale, [[1], [0]])


def test_round_bf16():
    np.testing.assert_array_equal(
        formats.round_bf16([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, 3.4e38, np.inf, 2.0**-134]),
        [1, 1 + 2**-6, 1 + 2**-7, np.inf, np.inf, 0],
    )


def test_ffn_by_hand():
    x, up, gate, down = (
        np.array([[1.0, 2.0]]),
        np.array([[1.0, 0], [0, -1]]),
        np.array([[2.0, 0], [0, 1]]),
        np.array([[1.0, 10]]),
    )
    np.testing.assert_array_equal(ffn.ffn(x, up, down, activation="relu"), [[1]])
    np.testing.assert_array_equal(ffn.ffn(x, up, down, w_gate=gate, activation="relu"), [[2 * 1 + 2 * -2 * 10]])
    np.testing.assert_array_equal(
        ffn.ffn(x, up, down, b_up=np.array([1.0, 4]), b_down=np.array([100.0]), activation="identity"), [[2 + 20 + 100]]
    )
    np.testing.assert_array_equal(
        ffn.ffn(x, up, down, w_gate=gate, b_gate=np.array([0, -9.0]), activation="relu"), [[2]]
    )


def random_layer(rng, d_model, d_ff):
    return (
        rng.standard_normal((d_ff, d_model)) * d_model**-0.5,
        rng.standard_normal((d_model, d_ff)) * d_ff**-0.5,
        rng.standard_normal((d_ff, d_model)) * d_model**-0.5,
    )


@pytest.mark.parametrize("fmt", formats.FORMATS)
def test_bounds_hold_for_f32_arithmetic_and_reject_a_lost_element(fmt):
    codes = fmt == "int8" or fmt in formats.CODES
    rng = np.random.default_rng(1)
    up, down, gate = random_layer(rng, 130, 300)
    x = rng.standard_normal((20, 130)).astype(np.float32)
    up, down, gate = (formats.weight_values(w, fmt) for w in (up, down, gate))
    bounded = tolerance.ffn(x, up, down, fmt, gate, activation="silu")

    def float32_layer(x, up, down, gate):
        def mul(a, w):
            a = formats.activation_values(a, fmt)
            if codes:  # exact integer sums, rounded once
                return (a @ w.T).astype(np.float32)
            return a.astype(np.float32) @ w.astype(np.float32).T

        g = mul(x, gate)
        return mul(g / (1 + np.exp(-g)) * mul(x, up), down)

    def passes(y):
        return (np.abs(y - bounded.value) <= bounded.error).all()

    assert passes(float32_layer(x, up, down, gate))
    assert passes(ffn.format_ffn(x, up, down, fmt, gate, activation="silu")) or codes
    for lost in (0, 129):
        broken = up.copy()
        broken[:, lost] = 0
        assert not passes(float32_layer(x, broken, down, gate))
        broken = down.copy()
        broken[:, lost] = 0
        assert not passes(float32_layer(x, up, broken, gate))
        broken = gate.copy()
        broken[lost, 5] *= 1.1  # one weight wrong by a tenth
        assert not passes(float32_layer(x, up, down, broken)) or codes or fmt == "bf16"
    assert not passes(float32_layer(x, up, gate.T, down.T))


def test_bounds_are_tight():
    """Relative to the rms of the output, the median bound stays near what each format's arithmetic really has."""
    rng = np.random.default_rng(2)
    up, down, gate = random_layer(rng, 256, 700)
    x = rng.standard_normal((8, 256))
    for fmt, limit in (("f32", 3e-4), ("f16", 3e-4), ("bf16", 4e-3), ("int8", 5e-3)):
        values = [formats.weight_values(w, fmt) for w in (up, down, gate)]
        bounded = tolerance.ffn(x, values[0], values[1], fmt, values[2], activation="silu")
        assert np.median(bounded.error) / np.sqrt(np.mean(bounded.value**2)) < limit, fmt
