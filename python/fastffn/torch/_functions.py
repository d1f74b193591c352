"""linear, ffn, moe, fff, route_topk and router_logits for torch tensors: fastffn's own functions, which torch can also trace.

Where nothing traces, records or batches the call they go to the library directly; else to the registered operator.
"""

from __future__ import annotations

from typing import Any

import torch

import fastffn as ff

from . import _ops

_operators = torch.ops.fastffn


def _autocast(x: Any) -> Any:
    """x as autocast wants it: on the CPU in its dtype, which is then y's."""
    if torch.is_autocast_enabled("cpu") and x.is_floating_point():
        return x.to(torch.get_autocast_dtype("cpu"))
    return x


def _records(*tensors: Any) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _refuse_out(operation: str, *tensors: Any) -> None:
    if _records(*tensors):
        raise RuntimeError(
            f"{operation}: out= records no gradients, and an argument requires them; leave out= away, or call it under"
            " torch.no_grad()"
        )


def _width(operation: str, out_features: int | None, packed: Any, default: int | None = None) -> int:
    """The result's width: as told, else as the header says where there is one to read, else the default."""
    if out_features is not None:
        return out_features
    if not torch.compiler.is_compiling() and type(packed) in (torch.Tensor, torch.nn.Parameter):
        return ff.info(packed).out_features
    if default is None:
        raise TypeError(
            f"{operation}: out_features is needed where a call is traced: the width of y is in the packed weight's header,"
            " which cannot be read then"
        )
    return default


def linear(x: Any, w: Any, bias: Any = None, *, out_features: int | None = None, out: Any = None) -> Any:
    """:func:`fastffn.linear`, which torch can trace and differentiate.

    Args:
        x, w, bias, out: as :func:`fastffn.linear`.
        out_features: the width of y. Needed where torch traces the call (`torch.compile`, `torch.export`), where the header of
            w cannot be read; compared with it otherwise.
    """
    x = _autocast(x)
    if out is not None:
        _refuse_out("linear", x, bias)
        _operators.linear_out(x, w, bias, out)
        return out
    return _operators.linear(x, w, bias, _width("linear", out_features, w))


def ffn(
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
    out_features: int | None = None,
    out: Any = None,
) -> Any:
    """:func:`fastffn.ffn`, which torch can trace and differentiate.

    Args:
        out_features: the width of y; x's where a traced call does not say.
        others: as :func:`fastffn.ffn`.
    """
    x = _autocast(x)
    arguments = (x, w_up, w_down, w_gate, b_up, b_down, b_gate, activation, _ops.flat_segments(segments))
    if out is not None:
        _refuse_out("ffn", x, b_up, b_down, b_gate)
        _operators.ffn_out(*arguments, out)
        return out
    return _operators.ffn(*arguments, _width("ffn", out_features, w_down, x.shape[-1]))
