"""A dense layer split into experts: which neurons went where, the router, and the layer packed to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ._dense import DenseLayer

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LearnedRouter:
    """MoEfication's: logits = tanh(x / |x| w_inᵀ) w_outᵀ. A picked expert's result counts fully.

    Attributes:
        w_in: [experts, d_model].
        w_out: [experts, experts].
    """

    w_in: F32
    w_out: F32


@dataclass(frozen=True)
class AnalyticRouter:
    """CMoE's: logits = |act(x w_gateᵀ + b_gate) ⊙ (x w_upᵀ + b_up)|, one typical neuron of each expert.

    Experts are picked by softmax(logits) + balance, and weigh 1 + scale · softmax(logits): a scale of 0 and no balance
    are where fine-tuning would begin.

    Attributes:
        w_up, w_gate: [experts, d_model]; w_gate is None in a layer without a gate: logits = |act(x w_upᵀ + b_up)|.
        b_up, b_gate: [experts] or None.
        activation: the layer's.
        balance: [experts].
        scale: a number.
    """

    w_up: F32
    w_gate: F32 | None
    b_up: F32 | None
    b_gate: F32 | None
    activation: str
    balance: F32
    scale: float


@dataclass(frozen=True)
class MoeLayer:
    """A dense layer as a mixture of experts, unpacked.

    Attributes:
        dense: the layer that it was.
        experts: [experts, width], the hidden neurons of each routed expert.
        shared: the neurons that every token uses; may be empty.
        picks: how many experts a token uses.
        router: how it chooses them.
    """

    dense: DenseLayer
    experts: I64
    shared: I64
    picks: int
    router: LearnedRouter | AnalyticRouter

    @property
    def active_fraction(self) -> float:
        """Hidden neurons, and so weights, that a token uses, of all; the router not counted."""
        return (self.shared.size + self.picks * self.experts.shape[1]) / self.dense.d_ff


def check_split(operation: str, layer: DenseLayer, experts: int, shared: int, picks: int) -> None:
    """Raises ValueError for counts that cannot be."""
    if experts < 1 or layer.d_ff % experts:
        raise ValueError(f"{operation}: experts is {experts}, expected a divisor of d_ff = {layer.d_ff}")
    if not 0 <= shared <= experts:
        raise ValueError(f"{operation}: shared is {shared}, expected 0 to experts = {experts}")
    most = experts - shared
    if not min(1, most) <= picks <= most:
        raise ValueError(f"{operation}: picks is {picks}, expected {min(1, most)} to {most}, the routed experts")
