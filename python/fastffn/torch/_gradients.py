"""Gradients of the operators on packed weights: by x, by biases of dense layers, by the weights of picks.

Each has an operator of its own, <name>_backward, opaque to the tracer like the forward one: the packed weights are dequantised
inside, where their headers can be read, and what comes out has the shapes of the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import fastffn as ff

from . import _ops
from ._derivatives import Gradients, Layer, ffn_backward, route_backward
from ._device_weights import weight
from ._library import LIBRARY, define, like, refuse_second_derivatives

_operators = torch.ops.fastffn


def rows_of(x: Any) -> Any:
    """x [..., n] as [rows, n] in f32, without its history."""
    return x.detach().float().reshape(-1, x.shape[-1])


def weight_of(packed: Any) -> list[Any]:
    """The factors of a packed weight (one), or none where there is none."""
    return [] if packed is None else [dequantised(packed)]


def dequantised(packed: Any) -> Any:
    """What a packed weight multiplies x with, f32. Weights that were given rotated are unpacked so, and turned back here.

    One on a device is unpacked on the host: backward passes wait for the copies there and back.
    """
    if isinstance(packed := weight(packed), ff.DeviceWeight):
        return dequantised(ff.to_cpu(packed)).to(packed.array.device)
    w, options = ff.unpack(packed), ff.info(packed).options
    if not options.get("rotated"):
        return w
    return ff.hadamard(w, options["hadamard"], options.get("block"), inverse=True)


def f32(bias: Any) -> Any:
    """An optional vector in f32, without its history."""
    return None if bias is None else bias.detach().float()


def _none(values: Any) -> Any:
    """The gradient of a list of numbers or names: autograd takes an empty list for one of tensors."""
    return [] if values is not None and not len(values) else None


def _register(name: str, backward: Any, setup: Any) -> None:
    torch.library.register_autograd(f"fastffn::{name}", backward, setup_context=setup, lib=LIBRARY)


# linear and router_logits


def _linear_backward(grad: Any, x: Any, w: Any) -> Any:
    return (rows_of(grad) @ dequantised(w)).to(x.dtype).reshape(x.shape)


define("linear_backward(Tensor grad, Tensor x, Tensor w) -> Tensor", _linear_backward, lambda grad, x, w: like(x))
refuse_second_derivatives("linear_backward")


def _linear_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, w, bias, _ = inputs
    ctx.save_for_backward(x, w, bias)


def _linear_gradients(ctx: Any, grad: Any) -> Any:
    x, w, bias = ctx.saved_tensors
    by_x = _operators.linear_backward(grad, x, w) if ctx.needs_input_grad[0] else None
    by_bias = None
    if bias is not None and ctx.needs_input_grad[2]:
        by_bias = grad.float().reshape(-1, grad.shape[-1]).sum(0).to(bias.dtype)
    return by_x, None, by_bias, None


_register("linear", _linear_gradients, _linear_setup)
_register("router_logits", _linear_gradients, _linear_setup)


# ffn


def _ffn_backward(
    grad: Any, x: Any, w_up: Any, w_down: Any, w_gate: Any, b_up: Any, b_gate: Any, activation: str, segments: Any,
    sub_norm: Any, sub_norm_eps: float,
) -> list[Any]:  # fmt: skip
    layer = Layer(
        weight_of(w_up), weight_of(w_down), weight_of(w_gate), f32(b_up), None, f32(b_gate), activation, segments,
        f32(sub_norm), sub_norm_eps,
    )  # fmt: skip
    found = ffn_backward(rows_of(grad), rows_of(x), layer)
    made = [found.x.to(x.dtype).reshape(x.shape)]
    for t, by_t in ((b_up, found.b_up), (b_gate, found.b_gate), (sub_norm, found.sub_norm)):
        if t is not None:
            made.append(by_t.to(t.dtype))
    return made


def _ffn_backward_fake(
    grad: Any, x: Any, w_up: Any, w_down: Any, w_gate: Any, b_up: Any, b_gate: Any, activation: str, segments: Any,
    sub_norm: Any, sub_norm_eps: float,
) -> list[Any]:  # fmt: skip
    return [like(t) for t in (x, b_up, b_gate, sub_norm) if t is not None]


define(
    "ffn_backward(Tensor grad, Tensor x, Tensor w_up, Tensor w_down, Tensor? w_gate, Tensor? b_up, Tensor? b_gate,"
    " str activation, int[]? segments, Tensor? sub_norm, float sub_norm_eps) -> Tensor[]",
    _ffn_backward,
    _ffn_backward_fake,
)
refuse_second_derivatives("ffn_backward")


def _ffn_setup(ctx: Any, inputs: Any, output: Any) -> None:
    *tensors, ctx.activation, ctx.segments, sub_norm, ctx.sub_norm_eps, _, _ = inputs
    ctx.save_for_backward(*tensors, sub_norm)


def _ffn_gradients(ctx: Any, grad: Any) -> Any:
    x, w_up, w_down, w_gate, b_up, b_down, b_gate, sub_norm = ctx.saved_tensors
    by_x, *rest = _operators.ffn_backward(
        grad, x, w_up, w_down, w_gate, b_up, b_gate, ctx.activation, ctx.segments, sub_norm, ctx.sub_norm_eps
    )  # fmt: skip
    by_up, by_gate, by_norm = (None if t is None else rest.pop(0) for t in (b_up, b_gate, sub_norm))
    by_down = None
    if b_down is not None and ctx.needs_input_grad[5]:
        by_down = grad.float().reshape(-1, grad.shape[-1]).sum(0).to(b_down.dtype)
    return by_x, None, None, None, by_up, by_down, by_gate, None, _none(ctx.segments), by_norm, None, None, None


_register("ffn", _ffn_gradients, _ffn_setup)


# moe


def _stack(w: Any) -> Any:
    """[count, out, in], also of a single matrix."""
    return w.reshape(-1, *w.shape[-2:])


def packed_experts(
    w_up: Any, w_down: Any, w_gate: Any, b_up: Any, b_down: Any, b_gate: Any, activation: str
) -> Iterator[Layer]:
    """The experts of a list of packed stacks; each stack is dequantised when its first expert is asked for."""
    for i, packed in enumerate(w_up):
        up, down = _stack(dequantised(packed)), _stack(dequantised(w_down[i]))
        gate = _stack(dequantised(w_gate[i])) if w_gate else None
        biases = [b[i].detach().float().reshape(len(up), -1) if b else None for b in (b_up, b_down, b_gate)]
        for e in range(len(up)):
            b_up_e, b_down_e, b_gate_e = (None if table is None else table[e] for table in biases)
            yield Layer([up[e]], [down[e]], [] if gate is None else [gate[e]], b_up_e, b_down_e, b_gate_e, activation)


class MoeGradients:
    """Derivatives of a mixture by x [tokens, d_model] and by the weights of picks [tokens, k], gathered expert by expert."""

    def __init__(self, grad: Any, x: Any, ids: Any, weights: Any, weights_on_input: bool) -> None:
        self.grad, self.rows, self.ids = rows_of(grad), rows_of(x), ids.reshape(-1, ids.shape[-1])
        self.shares = torch.ones(self.ids.shape, device=x.device) if weights is None else rows_of(weights)
        self.weights_on_input = weights_on_input
        self.x, self.weights = torch.zeros_like(self.rows), torch.zeros_like(self.shares)

    def add_expert(self, e: int, layer: Layer) -> Gradients | None:
        """Expert e's part; its derivatives by its weights, or None where no token picked it."""
        token, slot = (self.ids == e).nonzero(as_tuple=True)
        if not token.numel():
            return None
        grad, rows, share = self.grad[token], self.rows[token], self.shares[token, slot].unsqueeze(-1)
        if self.weights_on_input:
            found = ffn_backward(grad, rows * share, layer)
            self.x.index_add_(0, token, found.x * share)
            self.weights[token, slot] = (found.x * rows).sum(-1)
        else:
            found = ffn_backward(grad * share, rows, layer, result=True)
            self.x.index_add_(0, token, found.x)
            self.weights[token, slot] = (grad * found.y).sum(-1)
        return found

    def add_copy(self, e: int) -> None:
        """A copy expert's part."""
        token, slot = (self.ids == e).nonzero(as_tuple=True)
        self.x.index_add_(0, token, self.grad[token] * self.shares[token, slot].unsqueeze(-1))
        self.weights[token, slot] = (self.grad[token] * self.rows[token]).sum(-1)

    def add_shared(self, layer: Layer, gate: Any) -> None:
        """A shared expert's part, gated by σ(gate · x) where it has a gate."""
        if gate is None:
            self.x += ffn_backward(self.grad, self.rows, layer).x
            return
        share = torch.sigmoid(self.rows @ gate).unsqueeze(-1)
        found = ffn_backward(self.grad * share, self.rows, layer, result=True)
        by_gate = (self.grad * found.y).sum(-1, keepdim=True) * share * (1 - share)
        self.x += found.x + by_gate * gate


def _moe_backward(
    grad: Any, x: Any, ids: Any, weights: Any, w_up: Any, w_down: Any, w_gate: Any, b_up: Any, b_down: Any, b_gate: Any,
    activation: str, shared: Any, special: Any, weights_on_input: bool,
) -> list[Any]:  # fmt: skip
    found = MoeGradients(grad, x, ids, weights, weights_on_input)
    e = -1
    for e, layer in enumerate(packed_experts(w_up, w_down, w_gate, b_up, b_down, b_gate, activation)):
        found.add_expert(e, layer)
    for i, kind in enumerate(special):
        if kind == "copy":
            found.add_copy(e + 1 + i)
    for s in _ops.shared_of(shared):
        tables: list[Any] = [
            [] if part is None else [part] for part in (s.w_up, s.w_down, s.w_gate, s.b_up, s.b_down, s.b_gate)
        ]
        gates = None if s.gate is None else s.gate.float().reshape(-1, found.rows.shape[-1])
        for i, layer in enumerate(packed_experts(*(*tables, activation))):
            found.add_shared(layer, None if gates is None else gates[i])
    made = [found.x.to(x.dtype).reshape(x.shape)]
    if weights is not None:
        made.append(found.weights.to(weights.dtype).reshape(weights.shape))
    return made


define(
    "moe_backward(Tensor grad, Tensor x, Tensor ids, Tensor? weights, Tensor[] w_up, Tensor[] w_down, Tensor[] w_gate,"
    " Tensor[] b_up, Tensor[] b_down, Tensor[] b_gate, str activation, Tensor?[] shared, str[] special,"
    " bool weights_on_input) -> Tensor[]",
    _moe_backward,
    lambda grad, x, ids, weights, *rest: [like(t) for t in (x, weights) if t is not None],
)
refuse_second_derivatives("moe_backward")


def _moe_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, ids, weights, *lists = inputs[:9]
    activation, shared, special, vectors, mix, weights_on_input, _ = inputs[9:]
    for t in (*(t for part in lists for t in part), *shared, vectors, mix):
        if t is not None and t.requires_grad:
            raise RuntimeError(
                "moe: gradients reach x and weights, and a bias, gate or vector of an expert requires them too; detach it, or"
                " train plain weights with fastffn.torch.MoE(trainable=True)"
            )
    if "constant" in special:
        raise RuntimeError("moe: constant experts have no gradients; call it under torch.no_grad()")
    ctx.options = (activation, special, weights_on_input)
    ctx.sizes = [len(part) for part in (*lists, shared)]
    ctx.absent = [t is None for t in shared]
    ctx.save_for_backward(x, ids, weights, *(t for part in lists for t in part), *(t for t in shared if t is not None))


def _moe_gradients(ctx: Any, grad: Any) -> Any:
    x, ids, weights, *flat = ctx.saved_tensors
    tensors = iter(flat)
    lists = [[next(tensors) for _ in range(size)] for size in ctx.sizes[:-1]]
    shared = [None if absent else next(tensors) for absent in ctx.absent]
    activation, special, weights_on_input = ctx.options
    by_x, *rest = _operators.moe_backward(
        grad, x, ids, weights, *lists, activation, shared, special, weights_on_input
    )  # fmt: skip
    nothing: list[Any] = [[None] * size for size in ctx.sizes]
    if any(ctx.absent):  # autograd takes a list with a None for one that is not of tensors
        nothing[-1] = None
    return (by_x, None, rest[0] if rest else None, *nothing[:-1], None, nothing[-1], _none(special), *[None] * 4)


_register("moe", _moe_gradients, _moe_setup)


# hadamard: an orthonormal matrix, whose transpose is its inverse


def _hadamard_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _, ctx.mode, ctx.block, ctx.inverse = inputs


def _hadamard_gradients(ctx: Any, grad: Any) -> Any:
    return _operators.hadamard(grad, ctx.mode, ctx.block, not ctx.inverse), None, None, None


_register("hadamard", _hadamard_gradients, _hadamard_setup)


# route_topk


def _route_fake(grad: Any, logits: Any, *rest: Any) -> Any:
    return like(logits)


def _route_backward(
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
    found = route_backward(
        grad, logits.detach(), ids, score, renormalize, scale, f32(bias), f32(gamma), norm_eps
    )  # fmt: skip
    return found.to(logits.dtype).contiguous()


define(
    "route_topk_backward(Tensor grad, Tensor logits, Tensor ids, str score, bool renormalize, float scale, Tensor? bias,"
    " Tensor? gamma, float norm_eps) -> Tensor",
    _route_backward,
    _route_fake,
)
refuse_second_derivatives("route_topk_backward")


def _route_setup(ctx: Any, inputs: Any, output: Any) -> None:
    logits, _, score, renormalize, scale, bias, correction, _, _, _, _, gamma, norm_eps, _ = inputs
    for name, t in (("bias", bias), ("correction_bias", correction), ("gamma", gamma)):
        if t is not None and t.requires_grad:
            raise RuntimeError(f"route_topk: gradients reach the logits, and {name} requires them too; detach it")
    ctx.options = (score, renormalize, scale, norm_eps)
    ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(logits, output[0], bias, gamma)


def _route_gradients(ctx: Any, _: Any, grad: Any) -> Any:
    logits, ids, bias, gamma = ctx.saved_tensors
    score, renormalize, scale, norm_eps = ctx.options
    by_logits = _operators.route_topk_backward(grad, logits, ids, score, renormalize, scale, bias, gamma, norm_eps)
    return (by_logits, *[None] * 13)


_register("route_topk", _route_gradients, _route_setup)
