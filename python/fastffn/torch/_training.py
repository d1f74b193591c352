"""Operators on plain weights, which are packed in every call: what trainable modules run.

The forward pass is the library's kernel on weights in their format; the backward pass is that of `_derivatives`, and its
gradients by the weights are those by the weights that the format made of them (straight through its rounding). A weight is a
list of factors: [w], or [u, v] for a low-rank one.
"""

from __future__ import annotations

from typing import Any

import torch

from fastffn import _core

from ._derivatives import Layer, ffn_backward, held
from ._device_weights import weight
from ._formats import pack_weight, parse_format
from ._gradients import MoeGradients, _register, f32, rows_of
from ._library import check_devices, check_input, define, like, readable, refuse_second_derivatives, result_like

_operators = torch.ops.fastffn
_WEIGHTS = "Tensor[] w_up, Tensor[] w_down, Tensor[] w_gate, Tensor? b_up, Tensor? b_down, Tensor? b_gate"


def _packed(weights: list[Any], format: str) -> Any:
    if not weights:
        return None
    parsed = parse_format(format, "fastffn.torch")
    return weight(pack_weight(weights[0] if len(weights) == 1 else tuple(weights), parsed))


def _all_packed(w_up: Any, w_down: Any, w_gate: Any, formats: list[str]) -> list[Any]:
    return [_packed(w, format) for w, format in zip((w_up, w_down, w_gate), formats, strict=True)]


def _all_held(w_up: Any, w_down: Any, w_gate: Any, formats: list[str]) -> list[Any]:
    parts = zip((w_up, w_down, w_gate), formats, strict=True)
    return [held(list(w), parse_format(format, "fastffn.torch")) if w else [] for w, format in parts]


def _in_order(x: Any, weights: Any, lists: Any, biases: Any) -> list[Any]:
    """The tensors that gradients are for, in the order in which backward operators return them."""
    return [x, *([] if weights is None else [weights]), *(t for part in lists for t in part)] + [
        b for b in biases if b is not None
    ]


def _distribute(found: list[Any], sizes: list[int], absent: list[bool]) -> tuple[list[Any], list[Any]]:
    """Gradients of the lists and of the biases, from one list."""
    rest = iter(found)
    return [[next(rest) for _ in range(size)] for size in sizes], [None if no else next(rest) for no in absent]


def _ffn(
    x: Any, w_up: Any, w_down: Any, w_gate: Any, b_up: Any, b_down: Any, b_gate: Any, activation: str, formats: Any
) -> Any:
    up, down, gate = _all_packed(w_up, w_down, w_gate, formats)
    out = result_like(x, w_down[-1].shape[-2])
    with torch.no_grad():
        return _core.ffn(readable(x), up, down, gate, b_up, b_down, b_gate, activation=activation, out=out)


def _ffn_fake(x: Any, w_up: Any, w_down: Any, *rest: Any) -> Any:
    check_input("ffn", x)
    check_devices("ffn", x, [*w_up, *w_down, *rest[0]])
    return result_like(x, w_down[-1].shape[-2])


define(f"ffn_plain(Tensor x, {_WEIGHTS}, str activation, str[] formats) -> Tensor", _ffn, _ffn_fake)


def _ffn_backward(
    grad: Any,
    x: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any,
    b_up: Any,
    b_down: Any,
    b_gate: Any,
    activation: str,
    formats: Any,
) -> list[Any]:
    weights = _all_held(w_up, w_down, w_gate, formats)
    up, down, gate = weights
    found = ffn_backward(
        rows_of(grad), rows_of(x), Layer(up, down, gate, f32(b_up), f32(b_down), f32(b_gate), activation)
    )  # fmt: skip
    targets = _in_order(x, None, (w_up, w_down, w_gate), (b_up, b_down, b_gate))
    biases = [b for b in (found.b_up, found.b_down, found.b_gate) if b is not None]
    values = [found.x, *found.up, *found.down, *found.gate, *biases]
    return [value.to(t.dtype).reshape(t.shape) for value, t in zip(values, targets, strict=True)]


def _ffn_backward_fake(grad: Any, x: Any, *rest: Any) -> list[Any]:
    return [like(t) for t in _in_order(x, None, rest[:3], rest[3:6])]


define(
    f"ffn_plain_backward(Tensor grad, Tensor x, {_WEIGHTS}, str activation, str[] formats) -> Tensor[]",
    _ffn_backward,
    _ffn_backward_fake,
)
refuse_second_derivatives("ffn_plain_backward")


def _setup(ctx: Any, first: Any, inputs: Any, options: Any) -> None:
    lists, biases = inputs[:3], inputs[3:6]
    ctx.options, ctx.sizes, ctx.absent = options, [len(part) for part in lists], [b is None for b in biases]
    ctx.save_for_backward(*first, *(t for part in lists for t in part), *(b for b in biases if b is not None))


def _ffn_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _setup(ctx, inputs[:1], inputs[1:7], inputs[7:])


def _ffn_gradients(ctx: Any, grad: Any) -> Any:
    x, *flat = ctx.saved_tensors
    lists, biases = _distribute(flat, ctx.sizes, ctx.absent)
    by_x, *found = _operators.ffn_plain_backward(grad, x, *lists, *biases, *ctx.options)
    by_lists, by_biases = _distribute(found, ctx.sizes, ctx.absent)
    return (by_x, *by_lists, *by_biases, None, None)


_register("ffn_plain", _ffn_gradients, _ffn_setup)

_MOE = f"Tensor x, Tensor ids, Tensor weights, {_WEIGHTS}, str activation, str[] formats, bool weights_on_input"


def _moe(
    x: Any, ids: Any, weights: Any, w_up: Any, w_down: Any, w_gate: Any, b_up: Any, b_down: Any, b_gate: Any,
    activation: str, formats: Any, weights_on_input: bool,
) -> Any:  # fmt: skip
    up, down, gate = _all_packed(w_up, w_down, w_gate, formats)
    out = result_like(x, w_down[-1].shape[-2])
    with torch.no_grad():
        return _core.moe(
            readable(x), ids, weights, up, down, gate, b_up, b_down, b_gate, activation=activation, weights_on_input=weights_on_input, out=out,
        )  # fmt: skip


def _moe_fake(x: Any, ids: Any, weights: Any, w_up: Any, w_down: Any, *rest: Any) -> Any:
    check_input("moe", x)
    check_devices("moe", x, [weights, *w_up, *w_down, *rest[0]])
    return result_like(x, w_down[-1].shape[-2])


define(f"moe_plain({_MOE}) -> Tensor", _moe, _moe_fake)


def _moe_backward(
    grad: Any, x: Any, ids: Any, weights: Any, w_up: Any, w_down: Any, w_gate: Any, b_up: Any, b_down: Any, b_gate: Any,
    activation: str, formats: Any, weights_on_input: bool,
) -> list[Any]:  # fmt: skip
    parts = _all_held(w_up, w_down, w_gate, formats)
    biases = [f32(b) for b in (b_up, b_down, b_gate)]
    total = MoeGradients(grad, x, ids, weights, weights_on_input)
    by_parts = [[torch.zeros_like(w) for w in part] for part in parts]
    by_biases = [None if b is None else torch.zeros_like(b) for b in biases]
    for e in range(len(parts[0][0])):
        up, down, gate = ([w[e] for w in part] for part in parts)
        bias_up, bias_down, bias_gate = (None if b is None else b[e] for b in biases)
        layer = Layer(up, down, gate, bias_up, bias_down, bias_gate, activation)
        found = total.add_expert(e, layer)
        if found is None:
            continue
        for sums, values in zip(by_parts, (found.up, found.down, found.gate), strict=True):
            for target, value in zip(sums, values, strict=True):
                target[e] = value
        for target, value in zip(by_biases, (found.b_up, found.b_down, found.b_gate), strict=True):
            if target is not None:
                target[e] = value
    values = _in_order(total.x, total.weights, by_parts, by_biases)
    targets = _in_order(x, weights, (w_up, w_down, w_gate), (b_up, b_down, b_gate))
    return [value.to(t.dtype).reshape(t.shape) for value, t in zip(values, targets, strict=True)]


def _moe_backward_fake(grad: Any, x: Any, ids: Any, weights: Any, *rest: Any) -> list[Any]:
    return [like(t) for t in _in_order(x, weights, rest[:3], rest[3:6])]


define(f"moe_plain_backward(Tensor grad, {_MOE}) -> Tensor[]", _moe_backward, _moe_backward_fake)
refuse_second_derivatives("moe_plain_backward")


def _moe_setup(ctx: Any, inputs: Any, output: Any) -> None:
    _setup(ctx, inputs[:3], inputs[3:9], inputs[9:])


def _moe_gradients(ctx: Any, grad: Any) -> Any:
    x, ids, weights, *flat = ctx.saved_tensors
    lists, biases = _distribute(flat, ctx.sizes, ctx.absent)
    by_x, by_weights, *found = _operators.moe_plain_backward(grad, x, ids, weights, *lists, *biases, *ctx.options)
    by_lists, by_biases = _distribute(found, ctx.sizes, ctx.absent)
    return (by_x, None, by_weights, *by_lists, *by_biases, None, None, None)


_register("moe_plain", _moe_gradients, _moe_setup)
