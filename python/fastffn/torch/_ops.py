"""Operators that run packed weights: torch.ops.fastffn.{linear, ffn, moe, fff, route_topk, router_logits} and their _out forms.

The functions of fastffn.torch call them where a call is traced, recorded or batched; otherwise they call the library directly.
"""

from __future__ import annotations

from typing import Any

import torch

from fastffn import SharedExperts, SpecialExperts, _core

from ._device_weights import all_weights, tensor, weight
from ._device_weights import tree as tree_of
from ._library import check_input, define, like, readable, result_like

_SHARED = 7  # tensors of one shared expert in the flat list of the moe operators


def flat_segments(segments: Any) -> list[int] | None:
    """Pairs (start, length) one after another, as the operators take them."""
    return None if segments is None else [int(value) for pair in segments for value in pair]


def _pairs(segments: Any) -> Any:
    return None if segments is None else list(zip(segments[::2], segments[1::2], strict=True))


def flat_shared(shared: Any) -> list[Any]:
    """SharedExperts, or a list of them, as one list of tensors, seven for each."""
    items = [] if shared is None else list(shared) if isinstance(shared, (list, tuple)) else [shared]
    return [
        tensor(part) for s in items for part in (s.w_up, s.w_down, s.w_gate, s.b_up, s.b_down, s.b_gate, s.gate)
    ]  # fmt: skip


def shared_of(flat: list[Any]) -> list[SharedExperts]:
    """The inverse of flat_shared."""
    shares = [flat[i : i + _SHARED] for i in range(0, len(flat), _SHARED)]
    return [SharedExperts(*all_weights(share[:3]), *share[3:]) for share in shares]


def _special(kinds: list[str], vectors: Any, mix: Any) -> Any:
    return SpecialExperts(tuple(kinds), vectors, mix) if kinds else None


# A new result is written by the same call as a given one, whose check of its shape is the check of out_features.


def _linear(x: Any, w: Any, bias: Any, out_features: int) -> Any:
    with torch.no_grad():
        return _core.linear(readable(x), weight(w), bias, out=result_like(x, out_features))


def _linear_out(x: Any, w: Any, bias: Any, out: Any) -> None:
    _core.linear(readable(x), weight(w), bias, out=out)


def _linear_fake(x: Any, w: Any, bias: Any, out_features: int) -> Any:
    check_input("linear", x, ("w", w))
    return result_like(x, out_features)


def _linear_out_fake(x: Any, w: Any, bias: Any, out: Any) -> None:
    check_input("linear", x, ("w", w))


define("linear(Tensor x, Tensor w, Tensor? bias, int out_features) -> Tensor", _linear, _linear_fake)
define("linear_out(Tensor x, Tensor w, Tensor? bias, Tensor(a!) out) -> ()", _linear_out, _linear_out_fake)


def _router_logits(x: Any, w: Any, bias: Any, experts: int) -> Any:
    out = x.new_empty((*x.shape[:-1], experts), dtype=torch.float32)
    with torch.no_grad():
        return _core.router_logits(readable(x), weight(w), bias, None, None, out, None)


def _router_logits_fake(x: Any, w: Any, bias: Any, experts: int) -> Any:
    check_input("router_logits", x, ("w", w))
    return x.new_empty((*x.shape[:-1], experts), dtype=torch.float32)


define("router_logits(Tensor x, Tensor w, Tensor? bias, int experts) -> Tensor", _router_logits, _router_logits_fake)

_FFN = (
    "Tensor x, Tensor w_up, Tensor w_down, Tensor? w_gate, Tensor? b_up, Tensor? b_down, Tensor? b_gate, str activation,"
    " int[]? segments, Tensor? sub_norm, float sub_norm_eps, bool? gate_first, {}"
)


def _run_ffn(
    x: Any, w_up: Any, w_down: Any, w_gate: Any, b_up: Any, b_down: Any, b_gate: Any, activation: str, segments: Any,
    sub_norm: Any, sub_norm_eps: float, gate_first: bool | None, out: Any,
) -> Any:  # fmt: skip
    return _core.ffn(
        readable(x), weight(w_up), weight(w_down), weight(w_gate), b_up, b_down, b_gate,
        activation=activation, segments=_pairs(segments), sub_norm=sub_norm, sub_norm_eps=sub_norm_eps,
        gate_first="auto" if gate_first is None else gate_first, out=out,
    )  # fmt: skip


def _ffn(x: Any, *arguments: Any) -> Any:
    with torch.no_grad():
        return _run_ffn(*(x, *arguments[:-1], result_like(x, arguments[-1])))


def _ffn_out(*arguments: Any) -> None:
    _run_ffn(*arguments)


def _ffn_fake(x: Any, w_up: Any, w_down: Any, w_gate: Any, *rest: Any) -> Any:
    check_input("ffn", x, ("w_up", w_up), ("w_down", w_down), ("w_gate", w_gate))
    return result_like(x, rest[-1])


def _ffn_out_fake(*arguments: Any) -> None:
    _ffn_fake(*arguments[:-1], 0)


define(f"ffn({_FFN.format('int out_features')}) -> Tensor", _ffn, _ffn_fake)
define(f"ffn_out({_FFN.format('Tensor(a!) out')}) -> ()", _ffn_out, _ffn_out_fake)

_MOE = (
    "Tensor x, Tensor ids, Tensor? weights, Tensor[] w_up, Tensor[] w_down, Tensor[] w_gate, Tensor[] b_up, Tensor[] b_down,"
    " Tensor[] b_gate, str activation, Tensor?[] shared, str[] special, Tensor? special_vectors, Tensor? special_mix,"
    " bool weights_on_input, {}"
)


def _run_moe(
    x: Any, ids: Any, weights: Any, w_up: Any, w_down: Any, w_gate: Any, b_up: Any, b_down: Any, b_gate: Any,
    activation: str, shared: Any, special: Any, vectors: Any, mix: Any, weights_on_input: bool, out: Any,
) -> Any:  # fmt: skip
    stacks = [all_weights(part) or None for part in (w_up, w_down, w_gate)] + [
        [*part] or None for part in (b_up, b_down, b_gate)
    ]
    return _core.moe(
        readable(x), ids, weights, *stacks, activation=activation, shared=shared_of(shared) or None,
        special=_special(special, vectors, mix), weights_on_input=weights_on_input, out=out,
    )  # fmt: skip


def _moe(x: Any, *arguments: Any) -> Any:
    with torch.no_grad():
        return _run_moe(*(x, *arguments[:-1], result_like(x, arguments[-1])))


def _moe_out(*arguments: Any) -> None:
    _run_moe(*arguments)


def _moe_fake(x: Any, ids: Any, *rest: Any) -> Any:
    check_input("moe", x, *(("w_up", w) for w in rest[1]))
    return result_like(x, rest[-1])


def _moe_out_fake(*arguments: Any) -> None:
    _moe_fake(*arguments[:-1], 0)


define(f"moe({_MOE.format('int out_features')}) -> Tensor", _moe, _moe_fake)
define(f"moe_out({_MOE.format('Tensor(a!) out')}) -> ()", _moe_out, _moe_out_fake)


def _hadamard(x: Any, mode: str, block: int | None, inverse: bool) -> Any:
    with torch.no_grad():
        return _core.hadamard(readable(x), mode, block or 0, inverse, like(x), None, None)


def _hadamard_fake(x: Any, mode: str, block: int | None, inverse: bool) -> Any:
    check_input("hadamard", x)
    return like(x)


define("hadamard(Tensor x, str mode, int? block, bool inverse) -> Tensor", _hadamard, _hadamard_fake)

_FFF = (
    "Tensor x, Tensor tree, Tensor? w_up, Tensor? w_down, Tensor? b_up, Tensor? b_down, str activation, Tensor? leaf,"
    " Tensor? master_up, Tensor? master_down, Tensor? master_b_up, Tensor? master_b_down, float? mix, str plan, {}"
)


def _run_fff(
    x: Any, tree: Any, w_up: Any, w_down: Any, b_up: Any, b_down: Any, activation: str, leaf: Any, master_up: Any,
    master_down: Any, master_b_up: Any, master_b_down: Any, mix: Any, plan: str, out: Any,
) -> Any:  # fmt: skip
    return _core.fff(
        readable(x), tree_of(tree), weight(w_up), weight(w_down), b_up, b_down, activation=activation, leaf=leaf,
        master_up=weight(master_up), master_down=weight(master_down), master_b_up=master_b_up, master_b_down=master_b_down, mix=mix, plan=plan, out=out,
    )  # fmt: skip


def _fff(x: Any, *arguments: Any) -> Any:
    return _run_fff(*(x, *arguments[:-1], result_like(x, arguments[-1])))


def _fff_out(*arguments: Any) -> None:
    _run_fff(*arguments)


def _fff_fake(x: Any, tree: Any, *rest: Any) -> Any:
    check_input("fff", x, ("tree", tree))
    return result_like(x, rest[-1])


def _fff_out_fake(*arguments: Any) -> None:
    _fff_fake(*arguments[:-1], 0)


define(f"fff({_FFF.format('int out_features')}) -> Tensor", _fff, _fff_fake)
define(f"fff_out({_FFF.format('Tensor(a!) out')}) -> ()", _fff_out, _fff_out_fake)

_TOPK = (
    "Tensor logits, int k, str score, bool renormalize, float scale, Tensor? bias, Tensor? correction_bias, int groups,"
    " int? topk_groups, str group_score, float top_p, Tensor? gamma, float norm_eps, float? capacity_factor{}"
)


def _run_topk(
    logits: Any, k: int, score: str, renormalize: bool, scale: float, bias: Any, correction_bias: Any, groups: int,
    topk_groups: Any, group_score: str, top_p: float, gamma: Any, norm_eps: float, capacity_factor: Any, out: Any,
) -> Any:  # fmt: skip
    return _core.route_topk(
        readable(logits), k, score=score, renormalize=renormalize, scale=scale, bias=bias, correction_bias=correction_bias,
        groups=groups, topk_groups=topk_groups, group_score=group_score, top_p=top_p, gamma=gamma, norm_eps=norm_eps,
        capacity_factor=capacity_factor, out=out,
    )  # fmt: skip


def _topk(*arguments: Any) -> Any:
    with torch.no_grad():
        return _run_topk(*(*arguments, None))


def _topk_out(*arguments: Any) -> None:
    _run_topk(*(*arguments[:-2], arguments[-2:]))


def _topk_fake(logits: Any, k: int, *rest: Any) -> Any:
    check_input("route_topk", logits)
    shape = (*logits.shape[:-1], k)
    return logits.new_empty(shape, dtype=torch.int32), logits.new_empty(shape, dtype=torch.float32)


def _topk_out_fake(*arguments: Any) -> None:
    check_input("route_topk", arguments[0])


define(f"route_topk({_TOPK.format('')}) -> (Tensor, Tensor)", _topk, _topk_fake)
define(f"route_topk_out({_TOPK.format(', Tensor(a!) ids, Tensor(b!) weights')}) -> ()", _topk_out, _topk_out_fake)
