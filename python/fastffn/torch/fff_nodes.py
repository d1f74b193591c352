"""The all-node form of fast feedforward trees, UltraFastBERT's "K×D", as it is trained (arXiv:2311.10770)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from fastffn._fff_weights import FffWeights

from ._activations import activation_named
from ._trees import descend, goes_right
from .fff import _array, _maybe


class AllNodeFFF(nn.Module):
    """K trees of depth D; each visited node is a neuron, and its pre-activation is also its decision.

    y = Σ_trees Σ_{visited n} act(z_n) · w_out[n], z_n = w_n·x + b_n, D + 1 nodes visited per tree. In training every node is
    computed densely and those off the way are multiplied by zero: decisions carry no gradient, and there is no hardening
    loss. In eval mode only the nodes on the way are read: what ``fastffn.fff`` computes from `export()`.

    Args:
        d_model: width of x [..., d_model].
        d_out: width of y; d_model unless given.
        depth: D; a tree has 2^(D+1) - 1 nodes.
        trees: K.
        activation: "gelu" as published, or any other of the library's.
        bias: whether z has a bias. There is none on the output.
        tie: a node goes right where z is "gt" (as published) or "ge" its threshold.

    Attributes:
        threshold: None, or a buffer [trees, nodes] that decisions compare z with; see `balance_thresholds`.
    """

    def __init__(
        self,
        d_model: int,
        d_out: int | None = None,
        *,
        depth: int,
        trees: int = 1,
        activation: str = "gelu",
        bias: bool = True,
        tie: str = "gt",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        d_out = d_model if d_out is None else d_out
        for name, value, least in (
            ("d_model", d_model, 1),
            ("d_out", d_out, 1),
            ("depth", depth, 0),
            ("trees", trees, 1),
        ):
            if value < least:
                raise ValueError(f"AllNodeFFF: {name} is {value}, expected at least {least}")
        if tie not in ("ge", "gt"):
            raise ValueError(f"AllNodeFFF: tie is {tie!r}, expected 'ge' or 'gt'")
        self.d_model, self.d_out, self.depth, self.trees, self.tie = d_model, d_out, depth, trees, tie
        self.activation = activation
        self._act = activation_named(activation, "AllNodeFFF")

        def parameter(bound: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype).uniform_(-bound, bound))

        nodes = 2 ** (depth + 1) - 1
        into = 1 / math.sqrt(d_model)
        self.node_weight = parameter(into, trees, nodes, d_model)
        self.node_bias = parameter(into, trees, nodes) if bias else None
        self.w_out = parameter(1 / math.sqrt((depth + 1) * trees), trees, nodes, d_out)
        self.register_buffer("threshold", None)

    def extra_repr(self) -> str:
        """Shapes, for print."""
        return (
            f"d_model={self.d_model}, d_out={self.d_out}, depth={self.depth}, trees={self.trees}, "
            f"activation={self.activation}"
        )

    def set_thresholds(self, threshold: Any) -> None:
        """Nodes go right where z exceeds these, [trees, nodes]; None: 0. A buffer, not trained."""
        expected = tuple(self.node_weight.shape[:2])
        if threshold is not None and tuple(threshold.shape) != expected:
            raise ValueError(f"AllNodeFFF: threshold has shape {tuple(threshold.shape)}, expected {expected}")
        self.threshold = None if threshold is None else threshold.detach().to(self.node_weight)

    def forward(self, x: Any, *, masked: bool | None = None) -> Any:
        """y [..., d_out] of x [..., d_model].

        Args:
            masked: compute all nodes and mask (gradients for every visited neuron), or only those on the way; the same
                values. In training mode masked unless given.
        """
        if x.shape[-1] != self.d_model:
            raise ValueError(f"AllNodeFFF: x has shape {tuple(x.shape)}, expected (..., {self.d_model})")
        rows = x.reshape(-1, self.d_model)
        y = self._masked(rows) if (self.training if masked is None else masked) else self._gathered(rows)
        return y.reshape(*x.shape[:-1], self.d_out)

    def route(self, x: Any) -> tuple[Any, Any]:
        """(place of the last visited node in its level [tokens, trees], smallest |z - threshold| on the way)."""
        rows = x.reshape(-1, self.d_model)
        return descend(rows, self.node_weight, self.node_bias, self.threshold, self.depth, self.tie)

    def logits(self, x: Any) -> Any:
        """z [tokens, trees, nodes], at every node."""
        z = torch.einsum("td,knd->tkn", x.reshape(-1, self.d_model), self.node_weight)
        return z if self.node_bias is None else z + self.node_bias

    def mask(self, z: Any) -> Any:
        """[tokens, trees, nodes], 1 at the nodes on the way and 0 elsewhere, from z at every node."""
        with torch.no_grad():
            right = goes_right(z, self.threshold, self.tie).long()
            node = torch.zeros((*z.shape[:2], 1), dtype=torch.long, device=z.device)
            mask = torch.zeros_like(z).scatter_(2, node, 1.0)
            for _ in range(self.depth):
                node = 2 * node + 1 + right.gather(2, node)
                mask.scatter_(2, node, 1.0)
            return mask

    def _masked(self, x: Any) -> Any:
        z = self.logits(x)
        return torch.einsum("tkn,kno->to", self._act(z) * self.mask(z), self.w_out)

    def _gathered(self, x: Any) -> Any:
        trees = torch.arange(self.trees, device=x.device)
        node = torch.zeros((x.shape[0], self.trees), dtype=torch.long, device=x.device)
        y = torch.zeros((x.shape[0], self.d_out), dtype=x.dtype, device=x.device)
        for level in range(self.depth + 1):
            z = torch.einsum("td,tkd->tk", x, self.node_weight[trees, node])
            if self.node_bias is not None:
                z = z + self.node_bias[trees, node]
            y = y + torch.einsum("tk,tko->to", self._act(z), self.w_out[trees, node])
            if level < self.depth:
                bound = None if self.threshold is None else self.threshold[trees, node]
                node = 2 * node + 1 + goes_right(z, bound, self.tie).long()
        return y

    def balance_thresholds(self, x: Any) -> None:
        """Sets every deciding node's threshold to the median z of the tokens of x that reach it: an even load on x.

        What the neurons compute does not change, only who visits them. Nodes that no token reaches keep their threshold.
        """
        with torch.no_grad():
            z = self.logits(x)
            threshold = torch.zeros(z.shape[1:], dtype=z.dtype, device=z.device)
            if self.threshold is not None:
                threshold = self.threshold.clone()
            node = torch.zeros(z.shape[:2], dtype=torch.long, device=z.device)
            for level in range(self.depth):
                for tree in range(self.trees):
                    for index in range(2**level - 1, 2 ** (level + 1) - 1):
                        here = node[:, tree] == index
                        if here.any():
                            threshold[tree, index] = z[here, tree, index].median()
                bounds = threshold.expand(z.shape).gather(2, node[..., None])
                node = 2 * node + 1 + goes_right(z.gather(2, node[..., None]), bounds, self.tie).squeeze(-1).long()
            self.set_thresholds(threshold)

    def export(self) -> FffWeights:
        """The weights as plain f32 NumPy arrays, for ``fastffn``."""
        return FffWeights(
            nodes=_array(self.node_weight), node_biases=_maybe(self.node_bias), thresholds=_maybe(self.threshold),
            w_out=_array(self.w_out), activation=self.activation, tie=self.tie,
        )  # fmt: skip

    @classmethod
    def from_weights(cls, weights: FffWeights, **options: Any) -> AllNodeFFF:
        """A module that holds these weights, to train them further; `options`: device, dtype."""
        if weights.w_out is None or weights.master is not None:
            raise ValueError("AllNodeFFF: expected weights of the all-node form without a master leaf")
        module = cls(
            weights.d_model, weights.d_out, depth=weights.depth, trees=weights.trees, activation=weights.activation,
            bias=weights.node_biases is not None, tie=str(weights.tie), **options,
        )  # fmt: skip
        given = {"node_weight": weights.nodes, "node_bias": weights.node_biases, "w_out": weights.w_out}
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(torch.from_numpy(np.array(given[name])))
        if weights.thresholds is not None:
            module.set_thresholds(torch.from_numpy(np.array(weights.thresholds)))
        return module
