"""How far each format is from exact mathematics on a normally distributed layer, against what its roundings predict."""

import numpy as np
import pytest

import fastffn as ff
from kernel_support import FORMATS, arithmetic, normal, pack, prepare_weights
from reference import ffn as oracle
from reference.activations import ACTIVATIONS
from reference.formats import CODES, weight_values


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def rounding_noise(values, fmt, is_weight):
    """Predicted rms error of one rounding, relative to the rms of the values.

    A rounding to steps of size s errs by s/√12 rms. bf16: s = 2^-7 of the power of two below |v|, so s/|v| is 2^-7 to
    2^-8, on average (rms) 0.75 · 2^-7. int8: s = max|row| / 127.
    """
    if fmt in CODES and is_weight:  # too coarse to be predicted: what the oracle keeps
        return rms(weight_values(values, fmt) - values) / rms(values)
    fmt = arithmetic(fmt)
    if fmt == "int8":
        return rms(np.abs(values).max(axis=-1) / 127) / np.sqrt(12) / rms(values)
    if fmt == "bf16":
        return 0.75 * 2**-7 / np.sqrt(12)
    if fmt == "f16" and is_weight:
        return 0.75 * 2**-10 / np.sqrt(12)
    return 2.0**-24


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("activation", ["identity", "gelu", "silu"])
@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("tokens", [1, 64])
def test_error_against_exact_mathematics(fmt, activation, gated, tokens):
    rng = np.random.default_rng([tokens, gated])
    d_model, d_ff = 192, 512
    x = normal(rng, (tokens, d_model))
    plain = {
        "w_up": normal(rng, (d_ff, d_model), scale=d_model**-0.5),
        "w_down": normal(rng, (d_model, d_ff), scale=d_ff**-0.5),
    }
    if gated:
        plain["w_gate"] = normal(rng, (d_ff, d_model), scale=d_model**-0.5)
    plain = {n: prepare_weights(fmt, w) for n, w in plain.items()}
    exact = oracle.ffn(x, **plain, activation=activation)
    y = ff.ffn(x, **{n: pack(w, fmt) for n, w in plain.items()}, activation=activation)
    error = rms(y - exact) / rms(exact)

    up = oracle.linear(x, plain["w_up"])
    hidden = ACTIVATIONS[activation](oracle.linear(x, plain["w_gate"]) if gated else up) * (up if gated else 1)
    first = np.hypot(rounding_noise(x, fmt, False), rounding_noise(plain["w_up"], fmt, True))
    second = np.hypot(rounding_noise(hidden, fmt, False), rounding_noise(plain["w_down"], fmt, True))
    # Errors of up and gate reach the hidden value with weights of order one: slope · rms(z) / rms(activation(z)) <= 2.
    predicted = np.sqrt((2 * first) ** 2 * (2 if gated else 1) + second**2)
    if arithmetic(fmt) in ("f32", "f16"):
        predicted += 8 * np.sqrt(d_ff) * 2.0**-24  # accumulation
    assert error <= 1.5 * predicted
    if arithmetic(fmt) in ("bf16", "int8"):
        assert error >= 0.2 * predicted, "better than its roundings allow: was the format used at all?"
