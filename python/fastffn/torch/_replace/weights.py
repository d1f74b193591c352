"""What a feed-forward layer is, whatever the model calls its parts: plain weights in, a float32 reference of the layer out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch.nn import functional

from fastffn.torch._activations import ACTIVATIONS

# GPT-OSS's gate: (clamp(up) + 1) · g σ(1.702 g), g = min(gate, 7). A name of fastffn.moe, not of fastffn.ffn.
CLAMPED = "swiglu_clamped"


@dataclass(frozen=True, eq=False)
class DenseWeights:
    """A dense or gated layer, down(act(gate x) ⊙ up x) or down(act(up x)), as its model holds it.

    Attributes:
        w_up, w_gate: [d_ff, d_model]; w_gate is None in a layer without a gate.
        w_down: [d_model_out, d_ff].
        b_up, b_gate: [d_ff] or None; b_down: [d_model_out] or None.
        activation: one of :func:`fastffn.activations`.
        sub_norm: γ [d_ff] of an RMSNorm on the hidden activations (BitNet); None for none.
        sub_norm_eps: of that norm.
        scales: {"w_up": s, …} where a weight is codes -1, 0, 1 times one number s: format "ternary" then stores it exactly.
        tolerance: how far the model's own result may be from the exact one. For layers that quantise activations.
    """

    w_up: Any
    w_down: Any
    w_gate: Any = None
    b_up: Any = None
    b_down: Any = None
    b_gate: Any = None
    activation: str = "silu"
    sub_norm: Any = None
    sub_norm_eps: float = 1e-5
    scales: dict[str, float] = field(default_factory=dict)
    tolerance: float = 0.0

    @property
    def d_model(self) -> int:
        return int(self.w_up.shape[1])

    @property
    def d_ff(self) -> int:
        return int(self.w_up.shape[0])

    def reference(self, x: Any) -> Any:
        """[..., d_model_out] in float32, from float32 weights and inputs."""
        x = x.float()
        up = _linear(x, self.w_up, self.b_up)
        act = ACTIVATIONS[self.activation]
        hidden = act(up) if self.w_gate is None else act(_linear(x, self.w_gate, self.b_gate)) * up
        if self.sub_norm is not None:
            mean = hidden.square().mean(-1, keepdim=True)
            hidden = hidden * torch.rsqrt(mean + self.sub_norm_eps) * self.sub_norm.float()
        return _linear(hidden, self.w_down, self.b_down)


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """The experts of a mixture, apart from their router.

    Attributes:
        w_up, w_gate: [experts, d_ff, d_model]; w_gate is None where experts have no gate.
        w_down: [experts, d_model, d_ff].
        b_up, b_gate, b_down: [experts, d_ff], [experts, d_model], or None.
        activation: one of :func:`fastffn.activations`, or "swiglu_clamped".
    """

    w_up: Any
    w_down: Any
    w_gate: Any = None
    b_up: Any = None
    b_down: Any = None
    b_gate: Any = None
    activation: str = "silu"
    tolerance: float = 0.0

    @property
    def experts(self) -> int:
        return int(self.w_up.shape[0])

    @property
    def d_model(self) -> int:
        return int(self.w_up.shape[2])

    @property
    def d_ff(self) -> int:
        return int(self.w_up.shape[1])

    def reference(self, x: Any, ids: Any, weights: Any) -> Any:
        """[tokens, d_model] in float32 of x [tokens, d_model], ids and weights [tokens, k]. One expert at a time in float32."""
        x = x.float()
        y = torch.zeros_like(x)
        for expert in ids.unique().tolist():
            rows, slots = (ids == expert).nonzero(as_tuple=True)
            part = self._expert(expert, x[rows])
            y.index_add_(0, rows, part * weights[rows, slots, None].float())
        return y

    def _expert(self, expert: int, x: Any) -> Any:
        def linear(x: Any, w: Any, b: Any) -> Any:
            return _linear(x, w[expert], None if b is None else b[expert])

        up = linear(x, self.w_up, self.b_up)
        gate = None if self.w_gate is None else linear(x, self.w_gate, self.b_gate)
        if self.activation == CLAMPED and gate is not None:
            gate = gate.clamp(max=7.0)
            hidden = (up.clamp(-7.0, 7.0) + 1) * gate * torch.sigmoid(1.702 * gate)
        else:
            act = ACTIVATIONS[self.activation]
            hidden = act(up) if gate is None else act(gate) * up
        return linear(hidden, self.w_down, self.b_down)


Weights = DenseWeights | ExpertWeights


def tensors_of(weights: Weights) -> dict[str, Any]:
    """The tensors that are there, by the names of the attributes."""
    named = {f.name: getattr(weights, f.name) for f in fields(weights)}
    return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}


def bytes_of(weights: Weights) -> int:
    """Bytes of all tensors, as the model holds them."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(weights).values())


def _linear(x: Any, w: Any, b: Any) -> Any:
    return functional.linear(x, w.float(), None if b is None else b.float())


def activation_of(function: Callable[[Any], Any]) -> str | None:
    """The library's name of an activation, told by what it computes: models have many classes for the same function."""
    x = torch.linspace(-6, 6, 241, dtype=torch.float32, device="cpu")
    with torch.no_grad(), torch.device("cpu"):
        try:
            y = function(x.clone())
        except Exception:  # whatever it is, it is no function of one float tensor
            return None
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            return None
        for name, ours in ACTIVATIONS.items():
            # gelu and gelu_tanh are 5e-4 apart, different roundings of one of them 1e-6.
            if (ours(x) - y.float()).abs().max() < 1e-5:
                return name
    return None
