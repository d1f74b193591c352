"""MoEfication: experts from similar input weights, and a small learned router.

Zhang, Lin, Liu, Li, Sun and Zhou 2022, "MoEfication: Transformer Feed-forward Layers are Mixtures of Experts"
(arXiv:2110.01786).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ._dense import DenseLayer, calibration_rows, dense_layer, hidden_rows, normalized
from ._kmeans import balanced_kmeans
from ._layer import LearnedRouter, MoeLayer, check_split
from ._router import RouterTraining, train_router

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def moefication(
    x: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    b_gate: Any = None,
    *,
    activation: str,
    experts: int = 16,
    picks: int = 4,
    rounds: int = 20,
    epochs: int = 30,
    seed: int = 0,
) -> MoeLayer:
    """Splits a dense layer into experts of similar neurons, and trains a router (MoEfication, arXiv:2110.01786).

    The rows of the matrix before the activation (w_gate, else w_up), of unit length, are grouped by balanced k-means.
    The router learns, from x, which experts a token activates most: an expert's positive activations added up, over
    the largest such sum of the token. Nine tenths of the rows teach, one tenth says which epoch was best.

    Args:
        x: [..., d_model], inputs that this layer sees on real data; some thousands of rows.
        w_up, w_down, w_gate, b_up, b_down, b_gate, activation: the layer, as :func:`fastffn.ffn` takes it, unpacked.
        experts: parts of equal width; divides d_ff.
        picks: how many of them a token uses.
        rounds: of k-means, at most.
        epochs: of the router's training.
        seed: of both.

    Returns:
        The layer as a mixture of experts. With picks = experts it computes what the dense layer does. Fewer picks suit
        layers whose activation is relu, where most neurons are exactly 0; with others they lose quality.

    Raises:
        ValueError: shapes that do not fit, NaN or infinity, experts that do not divide d_ff, or counts out of range.
        TypeError: an argument is no array.
    """
    return moefication_with_training(
        x, dense_layer("moefication", w_up, w_down, w_gate, b_up, b_down, b_gate, activation),
        experts=experts, picks=picks, rounds=rounds, epochs=epochs, seed=seed,
    )[0]  # fmt: skip


def moefication_with_training(
    x: Any, layer: DenseLayer, *, experts: int, picks: int, rounds: int, epochs: int, seed: int
) -> tuple[MoeLayer, RouterTraining]:
    """`moefication` on a checked layer; says how the router's training went."""
    rows = calibration_rows("moefication", x, layer)
    check_split("moefication", layer, experts, 0, picks)
    for name, value, least in (("rounds", rounds, 1), ("epochs", epochs, 0)):
        if value < least:
            raise ValueError(f"moefication: {name} is {value}, expected at least {least}")
    before = layer.w_up if layer.w_gate is None else layer.w_gate
    labels, centres = balanced_kmeans(normalized(before), experts, rounds, seed)
    members = np.stack([np.flatnonzero(labels == expert) for expert in range(experts)])
    targets = _targets(layer, rows, members)
    w_in, w_out, training = train_router(normalized(rows), targets, centres.astype(np.float32), epochs, seed)
    return MoeLayer(layer, members, np.empty(0, np.int64), picks, LearnedRouter(w_in, w_out)), training


def _targets(layer: DenseLayer, x: F32, members: I64) -> F32:
    """Each expert's positive activations added up, over the token's largest sum: [rows, experts] in [0, 1].

    Behind a gate the sign of a product means nothing, so there its size counts.
    """
    parts = []
    for hidden in hidden_rows(layer, x):
        active = np.maximum(hidden, 0) if layer.w_gate is None else np.abs(hidden)
        sums = active[:, members].sum(axis=2)
        largest = sums.max(axis=1, keepdims=True)
        parts.append(sums / np.where(largest > 0, largest, 1))
    targets: F32 = np.concatenate(parts).astype(np.float32)
    return targets
