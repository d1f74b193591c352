"""A dense layer cut into experts, in float64, and balanced assignments by trying all of them.

    y = Σ_{i in shared} h_i(x) w_down[:, i]  +  Σ_{e picked} weight_e Σ_{i in expert e} h_i(x) w_down[:, i]  +  b_down

with h the dense layer's hidden activations: with every expert picked and weights 1, y is what the dense layer gives.
"""

import itertools

import numpy as np

from .activations import ACTIVATIONS
from .ffn import linear


def hidden(x, w_up, w_gate=None, b_up=None, b_gate=None, activation="relu"):
    """[rows, d_ff] in float64."""
    act = ACTIVATIONS[activation]
    up = linear(x, w_up, b_up)
    return act(up) if w_gate is None else act(linear(x, w_gate, b_gate)) * up


def split_ffn(h, w_down, experts, shared, ids, weights=None, b_down=None):
    """The split layer's output from hidden activations h [rows, d_ff]; ids [rows, k]; weights [rows, k] or None: all 1."""
    used = np.zeros_like(h)
    used[:, shared] = 1
    for row, picked in enumerate(ids):
        for slot, expert in enumerate(picked):
            used[row, experts[expert]] += 1 if weights is None else weights[row, slot]
    y = (h * used) @ np.asarray(w_down, np.float64).T
    return y if b_down is None else y + b_down


def least_cost(cost, sizes):
    """The least total cost of an assignment that fills groups to their sizes, by trying every one. Few members only."""
    members = [group for group, size in enumerate(sizes) for _ in range(size)]
    return min(
        sum(cost[member, group] for member, group in enumerate(labels))
        for labels in set(itertools.permutations(members))
    )


def learned_logits(x, w_in, w_out):
    """MoEfication's router: tanh(x / |x| · w_inᵀ) · w_outᵀ."""
    x = np.asarray(x, np.float64)
    length = np.linalg.norm(x, axis=-1, keepdims=True)
    return linear(np.tanh(linear(x / np.where(length > 0, length, 1), w_in)), w_out)


def analytic_logits(x, w_up, w_gate=None, b_up=None, b_gate=None, activation="silu"):
    """CMoE's router: |act(x w_gateᵀ + b_gate) ⊙ (x w_upᵀ + b_up)| of one neuron per expert."""
    return np.abs(hidden(x, w_up, w_gate, b_up, b_gate, activation))


def softmax(logits):
    """Over the last axis."""
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)
