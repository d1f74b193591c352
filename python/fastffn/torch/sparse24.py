"""2:4 sparse linear layers as they are trained: dense weights, a mask, and gradients that pass it straight through.

Hu et al. 2024, arXiv:2404.01847 (and Zhou et al. 2021, arXiv:2102.04010, for the decay). It is a reference: the products
here are dense, so training gains no speed on a CPU. What it gains is a layer that `fastffn.pack(…, "sparse24")` takes
without the loss of pruning after the fact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fastffn import _core


class _StraightThrough(torch.autograd.Function):
    """weight ⊙ mask forward; backward the gradient as it comes, plus decay·(1 - mask) ⊙ weight.

    The decay is part of the gradient and not of the optimiser's step: an optimiser that scales by past gradients then
    scales both alike.
    """

    @staticmethod
    def forward(ctx: Any, weight: Any, mask: Any, decay: float) -> Any:
        ctx.save_for_backward(weight, mask)
        ctx.decay = decay
        return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        weight, mask = ctx.saved_tensors
        if ctx.decay:
            grad = torch.where(mask, grad, grad + ctx.decay * weight)
        return grad, None, None


class Sparse24Linear(nn.Module):
    """``nn.Linear`` whose product sees 2:4 sparse weights while `sparse` is set, and dense ones otherwise.

    y = x · (weight ⊙ mask)ᵀ + bias. The gradient of y with respect to x is that of the sparse weights; the one with respect
    to `weight` is dense, as if nothing were masked, plus decay·(1 - mask) ⊙ weight: weights that are masked go on learning,
    and shrink unless they earn their place.

    Args:
        in_features, out_features, bias, device, dtype: as of ``nn.Linear``.
        transposable: two of four along rows and along columns of every 4×4 block, of the 90 such patterns the one that keeps
            the largest Σ|w|, so that the backward pass could run sparse too; else the two largest of four along rows.
        decay: of masked weights; the paper takes 6e-5 to 2e-4 for language models and more for small ones.

    Attributes:
        weight: [out_features, in_features], dense. mask: bool, the same shape; renewed by :meth:`refresh` only.
        sparse: whether the mask is in force.
    """

    mask: Any

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        transposable: bool = True,
        decay: float = 2e-4,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        for name, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ValueError(f"Sparse24Linear: {name} is {size}, expected at least 1")
        if not 0 <= decay < math.inf:
            raise ValueError(f"Sparse24Linear: decay is {decay}, expected 0 or more")
        self.in_features, self.out_features = in_features, out_features
        self.transposable, self.decay, self.sparse = transposable, decay, True
        bound = 1 / math.sqrt(in_features)
        shape = (out_features, in_features)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype).uniform_(-bound, bound))
        self.bias = (
            nn.Parameter(torch.empty(out_features, device=device, dtype=dtype).uniform_(-bound, bound))
            if bias
            else None
        )
        self.register_buffer("mask", torch.ones(shape, device=device, dtype=torch.bool))
        self.refresh()

    @classmethod
    def from_linear(cls, linear: Any, *, transposable: bool = True, decay: float = 2e-4) -> Sparse24Linear:
        """With the weights of an ``nn.Linear``: its parameters themselves, not copies, so an optimiser may hold them."""
        made = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            transposable=transposable,
            decay=decay,
            device="meta",
        )
        made.weight, made.bias = linear.weight, linear.bias
        made.mask = torch.ones(linear.weight.shape, device=linear.weight.device, dtype=torch.bool)
        made.refresh()
        return made

    def refresh(self) -> float:
        """Takes the mask anew from the weights; returns the share of its elements that changed (not yet per step)."""
        if self.weight.device.type == "meta":
            return 0.0
        weight = self.weight.detach().cpu()
        mask = _core.mask24(weight, self.transposable).to(self.mask.device, torch.bool)
        changed = float((mask != self.mask).float().mean())
        self.mask = mask
        return changed

    def sparse_weight(self) -> Any:
        """The 2:4 sparse weights without gradients: for ``fastffn.pack(layer.sparse_weight(), "sparse24")``."""
        weight = self.weight.detach()
        return torch.where(self.mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))

    def forward(self, x: Any) -> Any:
        """x [..., in_features] → [..., out_features]."""
        weight = _StraightThrough.apply(self.weight, self.mask, self.decay) if self.sparse else self.weight
        return nn.functional.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        """Shapes, for print."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None},"
            f" transposable={self.transposable}, decay={self.decay:g}, sparse={self.sparse}"
        )


class Sparse24Schedule:
    """When masks are renewed, and when training goes on without them.

    Call :meth:`step` after every ``optimizer.step()``. Masks are renewed every `every` steps, until the last
    `dense_steps`, which train all weights; after those the model is dense. For a model that is 2:4 at the end leave
    `dense_steps` at 0 (or prune afterwards); the paper, which wants a dense model trained cheaply, takes a sixth of all.

    Args:
        module: whatever contains :class:`Sparse24Linear` layers.
        steps: optimiser steps in all.
        every: steps between two renewals; the paper takes 40.
        dense_steps: steps at the end that are dense.
        freeze_steps: steps before those, or at the end, in which masks no longer change, for weights to settle.

    Attributes:
        flip_rates: (step, share of mask elements that changed per step since the renewal before). A healthy run
            shows it falling; one that stays high has too little decay.
    """

    def __init__(
        self, module: Any, steps: int, *, every: int = 40, dense_steps: int = 0, freeze_steps: int = 0
    ) -> None:
        if steps < 1 or every < 1 or dense_steps < 0 or freeze_steps < 0 or dense_steps + freeze_steps > steps:
            raise ValueError(
                f"Sparse24Schedule: steps {steps}, every {every}, dense_steps {dense_steps}, freeze_steps {freeze_steps};"
                " expected at least one step between renewals, and no more dense and frozen steps than steps"
            )
        self.layers = list(sparse_layers(module))
        if not self.layers:
            raise ValueError("Sparse24Schedule: module has no Sparse24Linear")
        self.steps, self.every, self.dense_steps, self.freeze_steps = steps, every, dense_steps, freeze_steps
        self.done = 0
        self.flip_rates: list[tuple[int, float]] = []
        self._set(dense_steps < steps)

    def step(self) -> float | None:
        """Counts one optimiser step; returns the flip rate when masks were renewed, else None."""
        self.done += 1
        left = self.steps - self.done
        if self.dense_steps and left <= self.dense_steps:
            self._set(False)
        if self.done % self.every or left <= self.dense_steps + self.freeze_steps:
            return None
        return self.refresh()

    def refresh(self) -> float:
        """Renews all masks now; returns and records the flip rate."""
        total = sum(layer.weight.numel() for layer in self.layers)
        changed = sum(layer.refresh() * layer.weight.numel() for layer in self.layers) / total
        before = self.flip_rates[-1][0] if self.flip_rates else 0
        rate = changed / max(self.done - before, 1)
        self.flip_rates.append((self.done, rate))
        return rate

    def _set(self, sparse: bool) -> None:
        for layer in self.layers:
            layer.sparse = sparse


def sparse_layers(module: Any) -> Iterator[Sparse24Linear]:
    """All :class:`Sparse24Linear` layers inside."""
    return (layer for layer in module.modules() if isinstance(layer, Sparse24Linear))


def sparsify24(module: Any, *, transposable: bool = True, decay: float = 2e-4, names: Any = None) -> Any:
    """Puts :class:`Sparse24Linear` in place of every ``nn.Linear`` inside, keeping its parameters; returns the module.

    Args:
        module: changed in place.
        transposable, decay: of the layers.
        names: qualified names of those to replace, such as {"ffn.up", "ffn.down"}; all by default. Embeddings, heads and
            attention are usually better left dense.

    Raises:
        ValueError: a name that is no ``nn.Linear`` of the module.
    """
    found = [name for name, layer in module.named_modules() if type(layer) is nn.Linear and name]
    chosen = found if names is None else list(names)
    for name in chosen:
        if name not in found:
            raise ValueError(f"sparsify24: {name!r} is no nn.Linear of the module, expected some of {', '.join(found)}")
        parent, _, last = name.rpartition(".")
        linear = module.get_submodule(name)
        setattr(
            module.get_submodule(parent),
            last,
            Sparse24Linear.from_linear(linear, transposable=transposable, decay=decay),
        )
    return module
