"""The library of registered operators, torch.ops.fastffn, and what their fake kernels and those for the CPU and CUDA share.

Registered from outside: neither fastffn nor this package links to torch. A packed weight is uint8 memory whose header says its
shape, which a fake tensor does not have; so operators that make a result take its width as an argument, `out_features`, and
the kernels compare it with the header (a result of another width is refused before any work).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

# Lives as long as the process: the operators go when it goes.
LIBRARY = torch.library.Library("fastffn", "DEF")

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> str:
    """Registers an operator with its kernel for the CPU and CUDA and its fake one; returns its qualified name."""
    name = schema[: schema.index("(")]

    def on_one_device(*arguments: Any) -> Any:
        made = fake(*arguments)
        check_one_device(name, arguments)
        return made

    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, kernel, "CPU")
    LIBRARY.impl(name, kernel, "CUDA")
    torch.library.register_fake(f"fastffn::{name}", on_one_device, lib=LIBRARY)
    return f"fastffn::{name}"


def check_one_device(operation: str, arguments: Any) -> None:
    """ValueError where tensors are on several devices: one on meta among others would make a result that nobody writes."""
    devices = {t.device: None for t in tree_leaves(arguments) if isinstance(t, torch.Tensor)}
    if len(devices) > 1:
        raise ValueError(f"{operation}: tensors are on {' and '.join(map(str, devices))}, expected one device")


def refuse_second_derivatives(name: str) -> None:
    """Makes a backward operator raise where torch differentiates it again, which else would go on without its part."""

    def refuse(*_: Any) -> Any:
        raise RuntimeError(
            f"{name.removesuffix('_backward')}: fastffn computes first derivatives only, and its gradient was made with"
            " create_graph=True and differentiated again; pass create_graph=False, or detach the gradient"
        )

    torch.library.register_autograd(f"fastffn::{name}", refuse, lib=LIBRARY)


def readable(x: Any) -> Any:
    """x, or a copy where its last dimension is not contiguous, or where it is a view with a pending sign."""
    if x.is_neg():
        x = x.resolve_neg()
    if x.dim() and x.stride(-1) != 1 and x.shape[-1] > 1:
        return x.contiguous()
    if x.is_cuda and not _one_stride(x):
        return x.contiguous()
    return x


def _one_stride(x: Any) -> bool:
    """Whether x's rows have one stride, as kernels on devices take them."""
    rows = [(n, s) for n, s in zip(x.shape[:-1], x.stride()[:-1], strict=True) if n != 1]
    return all(outer == n * inner for (_, outer), (n, inner) in zip(rows, rows[1:], strict=False))


def check_input(operation: str, x: Any, *packed: tuple[str, Any]) -> None:
    """What a fake kernel can know: dtypes, dimensions and devices."""
    if x.dtype not in FLOATS:
        raise ValueError(f"{operation}: x has dtype {x.dtype}, expected float32, float16 or bfloat16")
    if x.dim() == 0:
        raise ValueError(f"{operation}: x has shape (), expected (..., in_features)")
    for name, w in packed:
        # A meta tensor beside one with memory would make a result that nobody writes.
        if w is not None and w.device != x.device:
            raise ValueError(f"{operation}: {name} is on {w.device} and x on {x.device}, expected one device")
        if w is not None and (w.dtype != torch.uint8 or w.dim() != 1):
            raise ValueError(
                f"{operation}: {name} is a {w.dtype} tensor of shape {tuple(w.shape)}, expected packed weights:"
                " one-dimensional uint8, as fastffn.pack makes them"
            )


def result_like(x: Any, out_features: int) -> Any:
    """An empty result of x's dtype and leading dimensions."""
    return x.new_empty((*x.shape[:-1], out_features))


def check_devices(operation: str, x: Any, others: Iterable[Any]) -> None:
    """ValueError unless all tensors are where x is."""
    for t in others:
        if t is not None and t.device != x.device:
            raise ValueError(f"{operation}: x is on {x.device} and another tensor on {t.device}, expected one device")


def like(t: Any) -> Any:
    """An empty contiguous tensor like t."""
    return torch.empty_like(t, memory_format=torch.contiguous_format)
