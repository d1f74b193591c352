"""Activation functions in float64."""

import math

import numpy as np

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def identity(x):
    return np.asarray(x, np.float64)


def relu(x):
    return np.maximum(x, 0.0)


def relu2(x):
    """max(x, 0)² (So et al. 2021, Primer, arXiv:2109.08668)."""
    return np.maximum(x, 0.0) ** 2


def gelu(x):
    """x · Φ(x) (Hendrycks and Gimpel 2016, arXiv:1606.08415).

    Φ(x) = erfc(-x / √2) / 2, which does not cancel for x < 0.
    """
    x = np.asarray(x, np.float64)
    return x * 0.5 * _erfc(-x / math.sqrt(2)) if x.size else x


def gelu_tanh(x):
    """Its tanh form, x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³))) = x · sigmoid(2 √(2/π) (x + 0.044715 x³))."""
    x = np.asarray(x, np.float64)
    return x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def silu(x):
    """x · sigmoid(x) (Elfwing et al. 2017, arXiv:1702.03118)."""
    x = np.asarray(x, np.float64)
    return x * _sigmoid(x)


def _sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


ACTIVATIONS = {f.__name__: f for f in (identity, relu, relu2, gelu, gelu_tanh, silu)}

# Largest slope of each, over all x; relu2 has none, its slope at x is 2·max(x, 0).
SLOPE = {"identity": 1.0, "relu": 1.0, "gelu": 1.13, "gelu_tanh": 1.13, "silu": 1.1}
