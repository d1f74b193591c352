"""Quantisers of BitNet and the Hadamard transform in torch, with gradients: what ``fastffn`` computes, number for number.

weights      s = max(mean |w|, 1e-5), q = clamp(round(w / s), -1, 1), w ≈ s · q                     (b1.58, arXiv:2402.17764)
8 bits       s = max(max |x|, 1e-5) / 127, q = clamp(round(x / s), -127, 127), x ≈ s · q, per token
4 bits       q = clamp(round(√7 · x / (mean |x| + 1e-5)), -8, 7), x ≈ q · mean |x| / √7, per token   (a4.8, arXiv:2411.04965)

Ties go to even. Backward every one of them is the identity (straight through), as in the papers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

SMALLEST = 1e-5
# Orders of the dense factor of "kron"; fastffn.hadamard makes the matrices.
_KRON_ORDERS = (1, 12, 20, 28, 36, 52, 60, 108, 140, 156, 172)
HADAMARD_MODES = ("none", "pow2", "kron", "block")


def ternary(weight: Any, per_row: bool = False) -> tuple[Any, Any]:
    """Codes -1, 0, 1 in weight's dtype, and scales: shape (1,), or [out_features, 1] where each row has its own."""
    magnitude = weight.detach().double().abs()
    # The sum in f64, as pack() has it: a code on the edge must not depend on the order of a sum.
    mean = magnitude.mean(dim=-1, keepdim=True) if per_row else magnitude.mean().reshape(1)
    scale = mean.float().clamp(min=SMALLEST)
    return (weight.detach().float() / scale).round().clamp(-1, 1), scale


class _Straight(torch.autograd.Function):
    """Not original + (quantised - original).detach(): that rounds, and the codes would no longer be those of fastffn."""

    @staticmethod
    def forward(ctx: Any, original: Any, quantised: Any) -> Any:
        return quantised.to(original.dtype, copy=True)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        return grad, None


def straight(original: Any, quantised: Any) -> Any:
    """`quantised` forward, the gradient of `original` backward."""
    return _Straight.apply(original, quantised)


def quantised_weight(weight: Any, per_row: bool = False) -> Any:
    """The ternary weights, scaled; straight through."""
    codes, scale = ternary(weight, per_row)
    return straight(weight, codes * scale)


def quantised_activations(x: Any, bits: int) -> Any:
    """x [..., d] as its codes say, each token by itself; straight through."""
    rows = x.detach().float()
    if bits == 8:
        gamma = rows.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST)
        values = (rows * (127 / gamma)).round().clamp(-127, 127) * (gamma / 127)
    else:
        mean = rows.abs().mean(dim=-1, keepdim=True)
        codes = (rows * (math.sqrt(7) / (mean + SMALLEST))).round().clamp(-8, 7)
        values = codes * (mean / math.sqrt(7))
    return straight(x, values)


def check_hadamard(mode: str, block: int | None, size: int, operation: str) -> int:
    """The block of "block", 0 of the other modes; ValueError where rows of `size` have no such transform."""
    largest = size & -size
    if mode not in HADAMARD_MODES:
        raise ValueError(f"{operation}: hadamard is {mode!r}, expected one of {', '.join(HADAMARD_MODES)}")
    if mode != "block":
        if block:
            raise ValueError(f"{operation}: block is {block} with hadamard={mode!r}, expected it with 'block' only")
        if mode == "pow2" and size != largest:
            raise ValueError(
                f"{operation}: in_features is {size}, hadamard='pow2' needs a power of two; 'block' takes even ones"
            )
        if mode == "kron":
            _kron_order(size, operation)
        return 0
    width = block or largest
    if largest == 1:
        raise ValueError(f"{operation}: in_features is {size}, which is odd and has no blocks of 2 or more")
    if width < 2 or width & (width - 1) or size % width:
        raise ValueError(f"{operation}: block is {width}, expected a power of two that divides in_features {size}")
    return width


def _kron_order(size: int, operation: str) -> int:
    for order in _KRON_ORDERS:
        rest = size // order
        if size % order == 0 and rest & (rest - 1) == 0:
            return order
    raise ValueError(
        f"{operation}: in_features is {size}, which hadamard='kron' has no order for; 'block' takes even ones"
    )


def hadamard(x: Any, mode: str, block: int = 0) -> Any:
    """H · x along the last dimension, H orthonormal; differentiable, on any device. As ``fastffn.hadamard``."""
    size = x.shape[-1]
    if mode == "none":
        return x
    if mode == "block":
        return _butterflies(x.unflatten(-1, (size // block, block))).flatten(-2)
    order = _kron_order(size, "hadamard") if mode == "kron" else 1
    if order == 1:
        return _butterflies(x)
    dense = torch.from_numpy(_dense(order)).to(x)
    return torch.einsum("ij,...jm->...im", dense, _butterflies(x.unflatten(-1, (order, size // order)))).flatten(-2)


def _dense(order: int) -> Any:
    """H_K, orthonormal, from the library: columns are transforms of unit vectors."""
    import fastffn as ff

    return np.ascontiguousarray(np.asarray(ff.hadamard(np.eye(order, dtype=np.float32), mode="kron")).T)


def _butterflies(x: Any) -> Any:
    """Sylvester's matrix over √n along the last dimension, a power of two."""
    size = x.shape[-1]
    step = 1
    while step < size:
        pairs = x.unflatten(-1, (size // (2 * step), 2, step))
        first, second = pairs.unbind(-2)
        x = torch.stack([first + second, first - second], dim=-2).flatten(-3)
        step *= 2
    return x / math.sqrt(size)
