"""BitNet's feed-forward layers in float64, as the papers write them.

    b1.58 2B4T (arXiv:2504.12285)   h = relu²(x · Wgᵀ) ⊙ (x · Wuᵀ);  y = Q8(RMSNorm(h; γ)) · Wdᵀ;  x meets Wg, Wu as Q8(x)
    v2, H-BitLinear (2504.18415)    y = Q(H · x) · Wᵀ, W trained in the basis of H · x
    a4.8 (2411.04965)               Q4(x) into Wg and Wu, Q8(h) into Wd

Shapes: x [..., in], W [out, in], γ [d_ff]. Weights here are values: scale · {-1, 0, 1}.
"""

import numpy as np

from .activations import ACTIVATIONS

SMALLEST = 1e-5  # ε of the quantisers


def sylvester(n):
    """Sylvester's matrix of ±1 in its natural order."""
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    assert len(matrix) == n
    return matrix


def largest_power(n):
    """The largest power of two that divides n."""
    return n & -n


def hadamard_matrix(n, mode, block=None, order=None):
    """H with entries ±1/√n of a block. order: H_K of mode "kron", a matrix of ±1."""
    if mode == "none":
        return np.eye(n)
    if mode == "pow2":
        return sylvester(n) / np.sqrt(n)
    if mode == "block":
        block = block or largest_power(n)
        return np.kron(np.eye(n // block), sylvester(block) / np.sqrt(block))
    return np.kron(order, sylvester(n // len(order))) / np.sqrt(n)


def quantise8(x):
    """Absmax per token (b1.58): codes and scale."""
    gamma = np.maximum(np.abs(x).max(-1, keepdims=True, initial=0), SMALLEST)
    return np.clip(np.rint(x * 127 / gamma), -127, 127), gamma / 127


def quantise4(x):
    """√7 over the mean magnitude per token (a4.8): codes and scale."""
    beta = np.abs(x).mean(-1, keepdims=True)
    return np.clip(np.rint(np.sqrt(7) * x / (beta + SMALLEST)), -8, 7), beta / np.sqrt(7)


QUANTISE = {"int8": quantise8, "int4": quantise4, None: lambda x: (x, 1)}


def bitlinear(x, w, act="int8", h=None):
    """Q(H · x) · Wᵀ; w in the basis of H · x."""
    codes, scale = QUANTISE[act](x if h is None else x @ h.T)
    return (codes @ w.T) * scale


def rms_norm(x, gamma, eps=1e-5):
    """x / √(mean(x²) + ε) ⊙ γ."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gamma


def ffn(x, w_gate, w_up, w_down, gamma=None, eps=1e-5, act="int8", act_down="int8", h=None, activation="relu2"):
    """The gated layer: sub-norm with `gamma`, H before the down projection with `h`."""
    hidden = ACTIVATIONS[activation](bitlinear(x, w_gate, act)) * bitlinear(x, w_up, act)
    if gamma is not None:
        hidden = rms_norm(hidden, gamma, eps)
    return bitlinear(hidden, w_down, act_down, h)
