"""MoEfication's router and its training, in NumPy.

logits = tanh(x̂ W₁ᵀ) W₂ᵀ with x̂ = x / |x|: two matrices without biases, [experts, d_model] and [experts, experts]. They
begin as the experts' centres and the identity, and learn which experts a token activates most (binary cross-entropy
against each expert's activation over the token's largest), with Adam (Kingma and Ba 2015, arXiv:1412.6980).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

_RATE, _BETA1, _BETA2, _EPSILON = 0.01, 0.9, 0.999, 1e-8
_BATCH = 512
_HELD_OUT = 0.1


@dataclass(frozen=True)
class RouterTraining:
    """What training did: the loss on the held-out tenth before it and after each epoch, and which epoch was kept."""

    losses: tuple[float, ...]
    kept: int


def train_router(x: F32, targets: F32, centres: F32, epochs: int, seed: int) -> tuple[F32, F32, RouterTraining]:
    """Fits the router; keeps the epoch that did best on a tenth of the rows, held out.

    Args:
        x: [rows, d_model], of unit length.
        targets: [rows, experts] in [0, 1].
        centres: [experts, d_model], W₁ at the start.
        epochs: passes over the other nine tenths; 0 leaves the router as it begins.
        seed: of the split and of the order of rows.

    Returns:
        W₁, W₂ and how training went.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    held = max(1, round(_HELD_OUT * len(x)))
    # Of a single row, both parts: nothing can be held out.
    train, check = (order[held:], order[:held]) if len(x) > 1 else (order, order)
    weights = [centres.astype(np.float32), np.eye(len(centres), dtype=np.float32)]
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    losses = [_loss(x[check], targets[check], weights)]
    best, kept = [w.copy() for w in weights], 0
    step = 0
    for epoch in range(1, epochs + 1):
        rows = rng.permutation(train)
        for begin in range(0, len(rows), _BATCH):
            batch = rows[begin : begin + _BATCH]
            step += 1
            rate = _RATE * np.sqrt(1 - _BETA2**step) / (1 - _BETA1**step)
            for w, m, v, g in zip(weights, first, second, _gradients(x[batch], targets[batch], weights)):
                m += (1 - _BETA1) * (g - m)
                v += (1 - _BETA2) * (g * g - v)
                w -= (rate * m / (np.sqrt(v) + _EPSILON)).astype(np.float32)
        losses.append(_loss(x[check], targets[check], weights))
        if losses[-1] < losses[kept]:
            best, kept = [w.copy() for w in weights], epoch
    return best[0], best[1], RouterTraining(tuple(losses), kept)


def _loss(x: F32, targets: F32, weights: list[F32]) -> float:
    """Mean binary cross-entropy of logits, in the form that cannot overflow."""
    logits = np.tanh(x @ weights[0].T) @ weights[1].T
    loss = np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits)))
    return float(loss.mean(dtype=np.float64))


def _gradients(x: F32, targets: F32, weights: list[F32]) -> tuple[F32, F32]:
    hidden = np.tanh(x @ weights[0].T)
    logits = hidden @ weights[1].T
    at_logits = (0.5 * (1 + np.tanh(0.5 * logits)) - targets) / np.float32(targets.size)
    at_hidden = (at_logits @ weights[1]) * (1 - hidden * hidden)
    return at_hidden.T @ x, at_logits.T @ hidden
