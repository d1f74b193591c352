"""Each activation alone, over the whole range of its argument: x · 1, activation, · 1."""

import numpy as np
import pytest

import fastffn as ff
from kernel_support import ACTIVATIONS
from reference.activations import ACTIVATIONS as ORACLE
from reference.tolerance import ACTIVATION_UNITS, U

POINTS = np.concatenate(
    [
        np.linspace(-30, 30, 12001),
        np.linspace(-1, 1, 4001),
        [s * 2.0**e for e in range(-126, 100) for s in (-1, 1)],
        [0.0],
    ]
).astype(np.float32)


def run(activation, x):
    one = ff.pack(np.ones((1, 1), np.float32), "f32")
    return ff.ffn(x[:, None], one, one, activation=activation)[:, 0].astype(np.float64)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_accuracy(activation):
    with np.errstate(over="ignore"):
        expected = ORACLE[activation](POINTS.astype(np.float64))
    found = run(activation, POINTS)
    finite = np.abs(expected) < 3.4e38
    if activation in ("identity", "relu"):
        np.testing.assert_array_equal(found, expected)
        return
    units = np.abs(found - expected)[finite] / (U * np.abs(POINTS[finite].astype(np.float64)) + 2.0**-149)
    if activation == "relu2":
        np.testing.assert_allclose(found[finite], expected[finite], rtol=2 * U, atol=2.0**-126)
        assert np.isinf(found[~finite]).all()
    else:
        worst = units.argmax()
        assert units[worst] <= ACTIVATION_UNITS, f"{units[worst]:.1f} units at {POINTS[finite][worst]!r}"


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_relative_accuracy(activation):
    """Also where the value is small beside its argument: the tails must not lose their digits to cancellation."""
    x = np.linspace(-9 if activation == "silu" else -4, 9, 20001).astype(np.float32)
    x = x[x != 0]
    expected = ORACLE[activation](x.astype(np.float64))
    relative = np.abs(run(activation, x) / expected - 1) / U
    worst = relative.argmax()
    assert relative[worst] <= 64, f"{relative[worst]:.1f} units at {x[worst]!r}"


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_limits(activation):
    x = np.array([0.0, -0.0, -200, -1e4, -1e30, 200, 1e4, 1e30], np.float32)
    y = run(activation, x)
    np.testing.assert_array_equal(y[:2], 0)
    assert (np.abs(y[2:5]) <= 2.0**-126).all(), "no -inf · 0, no overflow of exp"
    np.testing.assert_array_equal(y[5:], x[5:].astype(np.float64))
