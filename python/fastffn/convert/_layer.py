"""A dense layer split into experts: which neurons went where, the router, and the layer packed to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ._dense import DenseLayer

if TYPE_CHECKING:
    from ._packed import PackedMoe

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
        return float(self.shared.size + self.picks * self.experts.shape[1]) / self.dense.d_ff

    def pack(self, format: str, picks: int | None = None, **options: Any) -> PackedMoe:
        """The layer in a weight format, to run with :func:`fastffn.moe`; the router stays in f32.

        Args:
            format, options: as :func:`fastffn.pack`.
            picks: another number of experts per token.

        Raises:
            ValueError: as :func:`fastffn.pack`, or picks out of range.
        """
        from ._packed import pack_moe

        picks = self.picks if picks is None else picks
        if not 1 <= picks <= len(self.experts):
            raise ValueError(f"pack: picks is {picks}, expected 1 to {len(self.experts)}, the routed experts")
        return pack_moe(self, format, picks, options)


def check_split(operation: str, layer: DenseLayer, experts: int, shared: int, picks: int) -> None:
    """Raises ValueError for counts that cannot be."""
    if experts < 1 or layer.d_ff % experts:
        raise ValueError(f"{operation}: experts is {experts}, expected a divisor of d_ff = {layer.d_ff}")
    if not 0 <= shared < experts:
        raise ValueError(f"{operation}: shared is {shared}, expected 0 to {experts - 1}: one expert at least is routed")
    if not 1 <= picks <= experts - shared:
        raise ValueError(f"{operation}: picks is {picks}, expected 1 to {experts - shared}, the routed experts")
