"""The layers in plain torch, f32: what gradients are computed with.

The forward pass is the library's kernel on packed weights. The backward pass recomputes the layer here, from the weights as
the format holds them (dequantised), and differentiates that. Roundings count as if they were not there: of activations, and
where a weight is trained, of the weight (the straight-through estimator of Bengio et al. 2013, arXiv:1308.3432).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

import fastffn as ff

from ._activations import activation_named


def dequantised(packed: Any) -> Any:
    """What a packed weight holds, f32."""
    return ff.unpack(packed)


def held(weights: list[Any], format: Any) -> list[Any]:
    """Plain weights, [w] or a pair [u, v], as the format would hold them, f32."""
    if len(weights) == 2:
        factors = format.options.get("factors", "bf16") if format.name == "lowrank" else format.name
        return [_held(w, factors, {}) for w in weights]
    return [_held(weights[0], format.name, format.options)]


def _held(w: Any, name: str, options: dict[str, Any]) -> Any:
    w = w.detach()
    if name == "f32":
        return w.float()
    if name in ("bf16", "f16"):
        return w.to(torch.bfloat16 if name == "bf16" else torch.float16).float()
    return ff.unpack(ff.pack(w, name, **options))


def product(x: Any, weights: list[Any], bias: Any = None) -> Any:
    """x · wᵀ + bias; weights are factors in the order in which they are applied."""
    for w in weights[:-1]:
        x = functional.linear(x, w)
    return functional.linear(x, weights[-1], bias)


def hidden(activation: str, up: Any, gate: Any) -> Any:
    """What an FFN's down projection sees, before any norm."""
    if activation == "swiglu_clamped":
        g = gate.clamp(max=7.0)
        return (up.clamp(-7.0, 7.0) + 1) * g * torch.sigmoid(1.702 * g)
    act = activation_named(activation, "ffn")
    return act(up) if gate is None else act(gate) * up


def ffn(
    x: Any,
    up: list[Any],
    down: list[Any],
    gate: list[Any] | None,
    b_up: Any,
    b_down: Any,
    b_gate: Any,
    activation: str,
    segments: list[int] | None = None,
    sub_norm: Any = None,
    sub_norm_eps: float = 1e-5,
) -> Any:
    """The dense or gated FFN."""
    h = hidden(activation, product(x, up, b_up), None if gate is None else product(x, gate, b_gate))
    if sub_norm is not None:
        h = functional.rms_norm(h, (h.shape[-1],), sub_norm, sub_norm_eps)
    if segments is not None:
        mask = torch.zeros(h.shape[-1], dtype=h.dtype)
        for start, length in zip(segments[::2], segments[1::2], strict=True):
            mask[start : start + length] = 1
        h = h * mask
    return product(h, down, b_down)


def moe(
    x: Any,
    ids: Any,
    weights: Any,
    expert: Any,
    count: int,
    d_out: int,
    weights_on_input: bool,
) -> Any:
    """Σ over picks of weight · expert(x); `expert(e, rows)` is what expert e makes of rows."""
    y = x.new_zeros((x.shape[0], d_out))
    for e in range(count):
        token, slot = (ids == e).nonzero(as_tuple=True)
        if not token.numel():
            continue
        rows = x[token]
        share = None if weights is None else weights[token, slot].unsqueeze(-1)
        if share is not None and weights_on_input:
            rows = rows * share
        out = expert(e, rows)
        if share is not None and not weights_on_input:
            out = out * share
        y = y.index_add(0, token, out)
    return y


def route_weights(
    logits: Any,
    ids: Any,
    score: str,
    renormalize: bool,
    scale: float,
    bias: Any = None,
    gamma: Any = None,
    norm_eps: float = 1e-6,
) -> Any:
    """The weights of picks that were made: a function of the logits alone, ids are constants."""
    logits = logits.float() if bias is None else logits.float() + bias.float()
    chosen = ids.long().clamp(min=0)
    if score == "relu":
        positive = logits.relu()
        p = positive * torch.rsqrt(positive.square().mean(-1, keepdim=True) + norm_eps)
        weights = (p if gamma is None else p * gamma.float()).gather(-1, chosen)
    elif score == "topk_softmax":
        weights = torch.softmax(logits.gather(-1, chosen).masked_fill(ids < 0, float("-inf")), -1)
    else:
        p = torch.sigmoid(logits) if score == "sigmoid" else torch.softmax(logits, -1)
        weights = p.gather(-1, chosen)
    weights = weights.masked_fill(ids < 0, 0.0)
    if renormalize:
        weights = weights / (weights.sum(-1, keepdim=True) + (1e-20 if score == "sigmoid" else 0.0))
    return weights * scale
