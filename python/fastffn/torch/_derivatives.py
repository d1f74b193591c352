"""Derivatives of the layers, in plain torch, f32.

The forward pass is the library's kernel on packed weights. The backward pass recomputes what it needs here, from the weights
as the format holds them (dequantised). Roundings count as if they were not there: those of activations, and where a weight is
trained that of the weight (the straight-through estimator, Bengio et al. 2013, arXiv:1308.3432).

A weight is a list of factors in the order in which they are applied: [w], or [u, v] for w = v @ u.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional

import fastffn as ff

from ._formats import Format

_aten = torch.ops.aten


def held(weights: list[Any], format: Format) -> list[Any]:
    """Plain weights as the format would hold them, f32."""
    if len(weights) == 2:
        return [_held(w, format.options.get("factors", "bf16"), {}) for w in weights]
    return [_held(weights[0], format.name, format.options)]


def _held(w: Any, name: str, options: dict[str, Any]) -> Any:
    w = w.detach()
    if name in ("f32", "bf16", "f16"):
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[name]
        return w.to(dtype).float()
    return ff.unpack(ff.pack(w, name, **options)).reshape(w.shape)


def product(x: Any, weights: list[Any], bias: Any = None) -> tuple[Any, list[Any]]:
    """(x · wᵀ + bias, what each factor was applied to)."""
    seen = []
    for w in weights:
        seen.append(x)
        x = functional.linear(x, w)
    return (x if bias is None else x + bias), seen


def product_backward(grad: Any, seen: list[Any], weights: list[Any]) -> tuple[Any, list[Any]]:
    """Derivatives by x and by each factor."""
    by_factor: list[Any] = []
    for x, w in zip(reversed(seen), reversed(weights), strict=True):
        by_factor.insert(0, grad.T @ x)
        grad = grad @ w
    return grad, by_factor


def _activation(name: str, z: Any) -> Any:
    if name == "relu2":
        return z.relu().square()
    if name in ("gelu", "gelu_tanh"):
        return functional.gelu(z, approximate="none" if name == "gelu" else "tanh")
    return {"identity": lambda v: v, "relu": functional.relu, "silu": functional.silu}[name](z)


def _activation_backward(name: str, grad: Any, z: Any) -> Any:
    if name == "identity":
        return grad
    if name == "relu":
        return grad * (z > 0)
    if name == "relu2":
        return grad * 2 * z.relu()
    if name == "silu":
        return _aten.silu_backward(grad, z)
    return _aten.gelu_backward(grad, z, approximate="none" if name == "gelu" else "tanh")


def _clamped_backward(grad: Any, up: Any, gate: Any) -> tuple[Any, Any]:
    """Of (clamp(up, ±7) + 1) · g · σ(1.702 g) with g = min(gate, 7)."""
    g = gate.clamp(max=7.0)
    s = torch.sigmoid(1.702 * g)
    by_up = grad * g * s * (up.abs() <= 7)
    by_gate = grad * (up.clamp(-7.0, 7.0) + 1) * s * (1 + 1.702 * g * (1 - s)) * (gate <= 7)
    return by_up, by_gate


@dataclass
class Layer:
    """The weights of a dense or gated FFN, f32."""

    up: list[Any]
    down: list[Any]
    gate: list[Any] = field(default_factory=list)
    b_up: Any = None
    b_down: Any = None
    b_gate: Any = None
    activation: str = "identity"
    segments: list[int] | None = None
    sub_norm: Any = None
    sub_norm_eps: float = 1e-5

    def hidden(self, up: Any, gate: Any) -> Any:
        """What the down projection sees."""
        if self.activation == "swiglu_clamped":
            g = gate.clamp(max=7.0)
            h = (up.clamp(-7.0, 7.0) + 1) * g * torch.sigmoid(1.702 * g)
        else:
            h = _activation(self.activation, up) if gate is None else _activation(self.activation, gate) * up
        return self._within(h)

    def _within(self, h: Any) -> Any:
        if self.segments is None:
            return h
        mask = torch.zeros(h.shape[-1], dtype=h.dtype, device=h.device)
        for start, length in zip(self.segments[::2], self.segments[1::2], strict=True):
            mask[start : start + length] = 1
        return h * mask

    def hidden_backward(self, grad: Any, up: Any, gate: Any) -> tuple[Any, Any]:
        """Derivatives by up and by gate before the activation."""
        grad = self._within(grad)
        if self.activation == "swiglu_clamped":
            return _clamped_backward(grad, up, gate)
        if gate is None:
            return _activation_backward(self.activation, grad, up), None
        by_gate = _activation_backward(self.activation, grad * up, gate)
        return grad * _activation(self.activation, gate), by_gate


@dataclass
class Gradients:
    """Derivatives of a layer's result; None where the layer has no such part."""

    x: Any
    up: list[Any]
    down: list[Any]
    gate: list[Any]
    b_up: Any
    b_down: Any
    b_gate: Any
    sub_norm: Any
    y: Any  # the layer's result, recomputed


def ffn_backward(grad: Any, x: Any, layer: Layer, result: bool = False) -> Gradients:
    """Derivatives of the dense or gated FFN: grad [tokens, d_out], x [tokens, d_model], both f32."""
    up, up_seen = product(x, layer.up, layer.b_up)
    gate, gate_seen = product(x, layer.gate, layer.b_gate) if layer.gate else (None, [])
    plain = layer.hidden(up, gate)
    hidden, scale = plain, None
    if layer.sub_norm is not None:
        scale = torch.rsqrt(plain.square().mean(-1, keepdim=True) + layer.sub_norm_eps)
        hidden = plain * scale * layer.sub_norm
    y, down_seen = product(hidden, layer.down, layer.b_down) if result else (None, product(hidden, layer.down[:-1])[1])
    if not result:
        down_seen.append(product(hidden, layer.down[:-1])[0])
    by_hidden, by_down = product_backward(grad, down_seen, layer.down)
    by_norm = None
    if scale is not None:
        by_norm = (by_hidden * plain * scale).sum(0)
        by_hidden = by_hidden * layer.sub_norm
        by_hidden = scale * by_hidden - plain * scale**3 * (by_hidden * plain).mean(-1, keepdim=True)
    by_up_z, by_gate_z = layer.hidden_backward(by_hidden, up, gate)
    by_x, by_up = product_backward(by_up_z, up_seen, layer.up)
    by_gate: list[Any] = []
    if gate is not None:
        more, by_gate = product_backward(by_gate_z, gate_seen, layer.gate)
        by_x = by_x + more
    return Gradients(
        by_x, by_up, by_down, by_gate,
        None if layer.b_up is None else by_up_z.sum(0),
        None if layer.b_down is None else grad.sum(0),
        None if layer.b_gate is None else by_gate_z.sum(0),
        by_norm,
        y,
    )  # fmt: skip


def _scores(logits: Any, score: str, gamma: Any, norm_eps: float) -> Any:
    if score == "sigmoid":
        return torch.sigmoid(logits)
    if score == "relu":
        positive = logits.relu()
        p = positive * torch.rsqrt(positive.square().mean(-1, keepdim=True) + norm_eps)
        return p if gamma is None else p * gamma
    return torch.softmax(logits, -1)


def _scores_backward(grad: Any, p: Any, logits: Any, score: str, gamma: Any, norm_eps: float) -> Any:
    if score == "sigmoid":
        return grad * p * (1 - p)
    if score == "relu":
        grad = grad if gamma is None else grad * gamma
        positive = logits.relu()
        inverse = torch.rsqrt(positive.square().mean(-1, keepdim=True) + norm_eps)
        mean = (grad * positive).mean(-1, keepdim=True)
        return (grad * inverse - positive * inverse**3 * mean) * (logits > 0)
    return p * (grad - (grad * p).sum(-1, keepdim=True))


def route_backward(
    grad: Any,
    logits: Any,
    ids: Any,
    score: str,
    renormalize: bool,
    scale: float,
    bias: Any,
    gamma: Any,
    norm_eps: float,
) -> Any:
    """Derivative by the logits of the weights of picks that were made; the picks themselves are constants."""
    rows = logits.float().reshape(-1, logits.shape[-1])
    rows = rows if bias is None else rows + bias.float()
    ids = ids.reshape(len(rows), -1)
    used, chosen = ids >= 0, ids.long().clamp(min=0)
    # Rows that the router gives up on (a NaN, +infinity, nothing but -infinity) have constant weights.
    routed = (rows < torch.inf).all(-1, keepdim=True) & (rows > -torch.inf).any(-1, keepdim=True)
    grad = torch.where(used, grad.float().reshape(ids.shape) * scale, 0.0)
    if score == "topk_softmax":
        picked = rows.gather(-1, chosen).masked_fill(~used, -torch.inf)
        p = torch.softmax(picked, -1)
        if renormalize:
            total = p.sum(-1, keepdim=True)
            grad = (grad - (grad * p).sum(-1, keepdim=True) / total) / total
        by_picked = torch.where(used, p * (grad - (grad * p).sum(-1, keepdim=True)), 0.0)
        by_logits = torch.zeros_like(rows).scatter_add(-1, chosen, by_picked)
        return torch.where(routed, by_logits, 0.0).reshape(logits.shape)
    gamma = None if gamma is None else gamma.float()
    p = _scores(rows, score, gamma, norm_eps)
    if renormalize:
        weights = torch.where(used, p.gather(-1, chosen), 0.0)
        total = weights.sum(-1, keepdim=True) + (1e-20 if score == "sigmoid" else 0.0)
        grad = torch.where(used & (total != 0), (grad - (grad * weights).sum(-1, keepdim=True) / total) / total, 0.0)
    by_p = torch.zeros_like(p).scatter_add(-1, chosen, grad)
    by_logits = _scores_backward(by_p, p, rows, score, gamma, norm_eps)
    return torch.where(routed, by_logits, 0.0).reshape(logits.shape)
