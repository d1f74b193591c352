"""Low-rank layers in float64, and how far a correct implementation may be from them.

    p = x · uᵀ;  y = p · vᵀ + b                                        u [rank, in], v [out, rank]: w = v · u
    ffn:  h = act(p · v1ᵀ + b1);  s = h · u2ᵀ;  y = s · v2ᵀ + b2        gated: h = act(gate) ⊙ up, with projections of its own
                                                                       or one for both (Shao et al. 2025, arXiv:2508.01506)

Formats round where they do in the dense layers: x and h as they meet u, p and s as they meet v. int8 has a scale per row and
256 columns of u, and one per token and 256 columns of x and h.
"""

import numpy as np

from . import tolerance
from .activations import ACTIVATIONS
from .ffn import linear

BLOCK = 256


def pair_linear(x, u, v, bias=None):
    """Exact mathematics: x [..., in] through u [rank, in] and v [out, rank]."""
    return linear(linear(x, u), v, bias)


def pair_ffn(x, up, down, gate=None, b_up=None, b_down=None, b_gate=None, activation="gelu"):
    """Exact mathematics of the layer; up, down, gate: (u, v)."""
    act = ACTIVATIONS[activation]
    hidden = pair_linear(x, *up, b_up)
    hidden = act(hidden) if gate is None else act(pair_linear(x, *gate, b_gate)) * hidden
    return pair_linear(hidden, *down, b_down)


def bounded_pair(x, u, v, fmt, bias=None):
    """x ± error through a pair of packed factors: their values u, v, and the format of both."""
    parts = []
    for begin in range(0, u.shape[1], BLOCK):
        block = slice(begin, begin + BLOCK)
        parts.append(tolerance.linear(tolerance.Bounded(x.value[..., block], x.error[..., block]), u[:, block], fmt))
    value = sum(part.value for part in parts)
    # Sums of blocks: each addition rounds a partial sum, which is at most the sum of all magnitudes.
    magnitude = sum(np.abs(part.value) + part.error for part in parts)
    error = sum(part.error for part in parts) + (len(parts) - 1) * tolerance.U * magnitude
    return tolerance.linear(tolerance.Bounded(value, error), v, fmt, bias)


def bounded_ffn(x, up, down, fmt, gate=None, b_up=None, b_down=None, b_gate=None, activation="gelu"):
    """The layer on the values of packed factors; x is exact."""
    x = tolerance.Bounded.exact(x)
    hidden = bounded_pair(x, *up, fmt, b_up)
    if gate is None:
        hidden = tolerance.activate(hidden, activation)
    else:
        hidden = tolerance.multiply(tolerance.activate(bounded_pair(x, *gate, fmt, b_gate), activation), hidden)
    return bounded_pair(hidden, *down, fmt, b_down)
