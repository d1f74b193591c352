"""linear and ffn in float64.

    linear:  y = x · wᵀ + b
    ffn:     y = activation(x · w_upᵀ + b_up) · w_downᵀ + b_down
    gated:   y = (activation(x · w_gateᵀ + b_gate) ⊙ (x · w_upᵀ + b_up)) · w_downᵀ + b_down
             (Shazeer 2020, arXiv:2002.05202)

Shapes: x [..., d_model]; w_up, w_gate [d_ff, d_model]; w_down [d_model_out, d_ff]; biases [out_features].
"""

import numpy as np

from .activations import ACTIVATIONS
from .formats import activation_values, weight_values


def linear(x, w, bias=None):
    """Exact mathematics: x [..., in], w [out, in] → [..., out]."""
    y = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    return y if bias is None else y + np.asarray(bias, np.float64)


def ffn(x, w_up, w_down, w_gate=None, b_up=None, b_down=None, b_gate=None, activation="gelu"):
    """Exact mathematics of the dense and the gated feed-forward layer."""
    act = ACTIVATIONS[activation]
    up = linear(x, w_up, b_up)
    hidden = act(up) if w_gate is None else act(linear(x, w_gate, b_gate)) * up
    return linear(hidden, w_down, b_down)


def format_linear(x, w, fmt, bias=None):
    """linear with the roundings of a weight format, and no others."""
    return linear(activation_values(x, fmt), weight_values(w, fmt), bias)


def format_ffn(x, w_up, w_down, fmt, w_gate=None, b_up=None, b_down=None, b_gate=None, activation="gelu"):
    """ffn with the roundings of a weight format on weights, x and the hidden activations, and no others."""
    act = ACTIVATIONS[activation]
    up = format_linear(x, w_up, fmt, b_up)
    hidden = act(up) if w_gate is None else act(format_linear(x, w_gate, fmt, b_gate)) * up
    return format_linear(hidden, w_down, fmt, b_down)
