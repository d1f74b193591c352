"""linear, ffn, moe, fff, route_topk and router_logits for torch tensors.

In plain eager calls they are C functions that run the library at once. Three roads lead from there to the Python functions of
this module, and with them to the registered operators of torch.ops.fastffn:

- torch.compile and torch.export replace the C function by its Python one while they trace;
- the C function hands over where a dispatch mode or autocast is on;
- and where it met an argument that it cannot read: one that requires grad, a fake, meta or vmap tensor, strange strides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.utils._pytree import tree_leaves

import fastffn as ff
from fastffn import _core

from . import _ops
from ._device_weights import device_weight, tensor
from ._device_weights import tree as tree_of

_operators = torch.ops.fastffn


def cast(x: Any) -> Any:
    """x as its device's autocast wants it: in its dtype, which is then y's."""
    kind = x.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind) and x.is_floating_point():
        return x.to(torch.get_autocast_dtype(kind))
    return x


def refuse_tangents(operation: str, tensors: Iterable[Any]) -> None:
    """RuntimeError in forward mode: the operators would drop the tangent."""
    if forward_ad._current_level < 0:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise RuntimeError(
            f"{operation}: an argument carries a tangent of forward-mode differentiation, which fastffn does not propagate;"
            " use reverse mode, or pass its primal"
        )


def _refuse_out(operation: str, *tensors: Any) -> None:
    if not torch.compiler.is_compiling() and tensors[-1] is not None and tensors[-1].is_neg():
        raise ValueError(f"{operation}: out is a lazily negated view; pass a plain tensor")
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise RuntimeError(
            f"{operation}: out= records no gradients, and an argument requires them; leave out= away, or call it under"
            " torch.no_grad()"
        )


def _width(operation: str, out_features: int | None, packed: Any, default: Any = None) -> Any:
    """The result's width: as told, else as the header says, else, where there is none to read, the default."""
    if out_features is not None:
        return out_features
    if not torch.compiler.is_compiling() and _is_plain(packed) and packed.device.type in ("cpu", "cuda"):
        return device_weight(packed).out_features if packed.is_cuda else ff.info(packed).out_features
    if default is None:
        raise TypeError(
            f"{operation}: out_features is needed where a call is traced: the width of y stands in the packed weight's"
            " header, which cannot be read then"
        )
    return default


def _linear(x: Any, w: Any, bias: Any = None, *, out: Any = None, out_features: int | None = None) -> Any:
    x, w = cast(x), tensor(w)
    if out is not None:
        _refuse_out("linear", x, bias, out)
        _operators.linear_out(x, w, bias, out)
        return out
    return _operators.linear(x, w, bias, _width("linear", out_features, w))


def _ffn(
    x: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    b_gate: Any = None,
    *,
    activation: str,
    segments: Any = None,
    sub_norm: Any = None,
    sub_norm_eps: float = 1e-5,
    gate_first: Any = "auto",
    out: Any = None,
    out_features: int | None = None,
) -> Any:
    if gate_first not in (True, False, "auto"):
        raise ValueError(f"ffn: gate_first is {gate_first!r}, expected 'auto', True or False")
    gate_first = None if gate_first == "auto" else gate_first
    x, w_up, w_down, w_gate = cast(x), tensor(w_up), tensor(w_down), tensor(w_gate)
    arguments = (
        x, w_up, w_down, w_gate, b_up, b_down, b_gate, activation, _ops.flat_segments(segments), sub_norm, float(sub_norm_eps),
        gate_first,
    )  # fmt: skip
    if out is not None:
        _refuse_out("ffn", x, b_up, b_down, b_gate, sub_norm, out)
        _operators.ffn_out(*arguments, out)
        return out
    return _operators.ffn(*arguments, _width("ffn", out_features, w_down, x.shape[-1]))


def _listed(part: Any) -> list[Any]:
    return [] if part is None else [tensor(t) for t in part] if isinstance(part, (list, tuple)) else [tensor(part)]


def _moe(
    x: Any,
    ids: Any,
    weights: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    b_gate: Any = None,
    *,
    activation: str,
    shared: Any = None,
    special: Any = None,
    weights_on_input: bool = False,
    load: Any = None,
    sub_norm: Any = None,
    sub_norm_eps: float = 1e-5,
    out: Any = None,
    out_features: int | None = None,
) -> Any:
    if sub_norm is not None or any(getattr(s, "sub_norm", None) is not None for s in _listed(shared)):
        raise RuntimeError(
            "moe: sub_norm, of experts or shared ones, is for plain eager calls; here one is traced, recorded or under autocast"
        )
    if load is not None:
        raise RuntimeError(
            "moe: load= is not filled where a call is traced or recorded; count ids, with torch.bincount"
        )
    x = cast(x)
    lists = [_listed(part) for part in (w_up, w_down, w_gate, b_up, b_down, b_gate)]
    kinds = getattr(special, "kinds", special) or ()
    arguments = (
        x, ids, weights, *lists, activation, _ops.flat_shared(shared), list(kinds), getattr(special, "vectors", None),
        getattr(special, "mix", None), weights_on_input,
    )  # fmt: skip
    # torch's bookkeeping does not look into lists with absent tensors, nor is there a gradient for these.
    held = [*_ops.flat_shared(shared), *(t for part in lists[3:] for t in part), *arguments[-3:-1]]
    if torch.is_grad_enabled() and any(isinstance(t, torch.Tensor) and t.requires_grad for t in held):
        raise RuntimeError(
            "moe: gradients reach x and weights, and a bias, gate or vector of an expert requires them too; detach it, or"
            " train plain weights with fastffn.torch.MoE(trainable=True)"
        )
    if out is not None:
        _refuse_out("moe", x, weights, out)
        _operators.moe_out(*arguments, out)
        return out
    return _operators.moe(*arguments, _width("moe", out_features, lists[1][0], x.shape[-1]))


def _fff_width(out_features: int | None, tree: Any, w_down: Any, default: int) -> Any:
    if w_down is not None or out_features is not None or torch.compiler.is_compiling() or not _is_plain(tree):
        return _width("fff", out_features, w_down, default)
    return ff.tree_info(tree_of(tree)).d_out if tree.device.type in ("cpu", "cuda") else default


def _fff(
    x: Any,
    tree: Any,
    w_up: Any = None,
    w_down: Any = None,
    b_up: Any = None,
    b_down: Any = None,
    *,
    activation: str,
    leaf: Any = None,
    master_up: Any = None,
    master_down: Any = None,
    master_b_up: Any = None,
    master_b_down: Any = None,
    mix: Any = None,
    plan: str = "auto",
    out: Any = None,
    out_features: int | None = None,
) -> Any:
    x, tree = cast(x), tensor(tree)
    w_up, w_down, master_up, master_down = map(tensor, (w_up, w_down, master_up, master_down))
    arguments = (
        x, tree, w_up, w_down, b_up, b_down, activation, leaf, master_up, master_down, master_b_up, master_b_down,
        None if mix is None else float(mix), plan,
    )  # fmt: skip
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, b_up, b_down)):
        raise RuntimeError(
            "fff: an argument requires grad, and packed trees have no gradients; train with fastffn.torch.FFF or AllNodeFFF,"
            " or call it under torch.no_grad()"
        )
    if out is not None:
        _refuse_out("fff", out)
        _operators.fff_out(*arguments, out)
        return out
    return _operators.fff(*arguments, _fff_width(out_features, tree, w_down, x.shape[-1]))


def _route_topk(
    logits: Any,
    k: int | None,
    *,
    score: str = "softmax",
    renormalize: bool = False,
    scale: float = 1.0,
    bias: Any = None,
    correction_bias: Any = None,
    groups: int = 1,
    topk_groups: int | None = None,
    group_score: str = "max",
    top_p: float = 1.0,
    gamma: Any = None,
    norm_eps: float = 1e-6,
    capacity_factor: float | None = None,
    out: Any = None,
) -> Any:
    arguments = (
        logits, logits.shape[-1] if k is None else k, score, renormalize, float(scale), bias, correction_bias, groups,
        topk_groups, group_score, float(top_p), gamma, float(norm_eps),
        None if capacity_factor is None else float(capacity_factor),
    )  # fmt: skip
    if out is not None:
        _refuse_out("route_topk", logits, bias, correction_bias, gamma, *out)
        _operators.route_topk_out(*arguments, *out)
        return out
    return _operators.route_topk(*arguments)


def router_logits(x: Any, w: Any, bias: Any = None, *, experts: int | None = None) -> Any:
    """:func:`fastffn.router_logits` for torch tensors, which torch can trace, differentiate and batch: [..., experts] f32.

    Args:
        x, w, bias: as :func:`fastffn.router_logits`. Gradients reach x and bias. Autocast changes nothing: routers compute
            in f32.
        experts: how many there are; needed where a call is traced.
    """
    w = tensor(w)
    return _operators.router_logits(x, w, bias, _width("router_logits", experts, w))


def hadamard(x: Any, mode: str = "pow2", block: int | None = None, inverse: bool = False) -> Any:
    """:func:`fastffn.hadamard` for torch tensors, which torch can trace, differentiate and batch. Autocast changes nothing."""
    return _operators.hadamard(x, mode, block, inverse)


def _is_plain(t: Any) -> bool:
    """Whether a tensor is one with memory: not fake, nor a wrapper such as DTensor, nor one of torch.func's."""
    dispatch = type(t).__torch_dispatch__
    return dispatch is torch._C._disabled_torch_dispatch_impl and not torch._C._functorch.is_functorch_wrapped_tensor(t)


def _needs_torch(t: Any) -> bool:
    """Whether an operator can do more with this tensor than the direct call that failed."""
    if not _is_plain(t) or t.device.type == "meta":
        return True
    if t.requires_grad and torch.is_grad_enabled():
        return True
    if t.is_cuda:  # packed bytes, or rows that have to be copied
        return t.dtype == torch.uint8 or not t.is_contiguous()
    return t.layout == torch.strided and t.dim() > 0 and t.stride(-1) != 1 and t.device.type == "cpu"


def _handler(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def hand_over(error: Exception | None, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if isinstance(error, (TypeError, MemoryError)):
            raise error
        # Shared experts are objects with tensors in them.
        values = [*args, *keywords.values(), *_ops.flat_shared(keywords.get("shared"))]
        tensors = [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]
        refuse_tangents(name, tensors)
        for option in ("stream", "workspace"):
            if keywords.pop(option, None) is not None:
                if error is not None and not any(_needs_torch(t) for t in tensors):
                    raise error
                raise RuntimeError(
                    f"{name}: {option}= is for plain eager calls; here one is traced, recorded or under autocast, or its arguments"
                    " need an operator of torch, which runs on torch's current stream"
                )
        if error is not None:
            layouts = {"nested" if t.is_nested else t.layout for t in tensors} - {torch.strided}
            if layouts:
                kinds = ", ".join(sorted(map(str, layouts)))
                raise ValueError(
                    f"{name}: an argument has the layout {kinds}, expected dense tensors; use to_dense(), or"
                    " torch.nested.to_padded_tensor()"
                )
            if not any(_needs_torch(t) for t in tensors):
                raise error
        return function(*args, **keywords)

    return hand_over


def _public(name: str, function: Callable[..., Any]) -> Any:
    direct = getattr(_core, f"torch_{name}")
    _core.set_torch_handler(name, _handler(name, function))
    if hasattr(torch.compiler, "substitute_in_graph"):
        torch.compiler.substitute_in_graph(direct, skip_signature_check=True)(function)
        return direct
    return _branching(name, direct, function)


def _branching(name: str, direct: Any, function: Any) -> Any:
    """For a torch that cannot replace C functions while it traces."""

    def call(*args: Any, **keywords: Any) -> Any:
        if torch.compiler.is_compiling():
            return function(*args, **keywords)
        return direct(*args, **keywords)

    call.__name__, call.__doc__ = name, direct.__doc__
    return call


def visible(name: str) -> Any:
    """The function of this name, for modules: under torch.jit.trace the Python one, whose operator is recorded."""
    return _TRACED[name] if torch.jit.is_tracing() else _PUBLIC[name]


linear = _public("linear", _linear)
ffn = _public("ffn", _ffn)
moe = _public("moe", _moe)
fff = _public("fff", _fff)
route_topk = _public("route_topk", _route_topk)

_TRACED = {"ffn": _ffn, "moe": _moe, "fff": _fff, "route_topk": _route_topk}
_PUBLIC = {"ffn": ffn, "moe": moe, "fff": fff, "route_topk": route_topk}
