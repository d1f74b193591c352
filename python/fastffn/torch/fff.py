"""Fast feedforward networks, the leaf form, as they are trained: soft, then hardened, then run with ``fastffn.fff``.

Belcak and Wattenhofer 2023, arXiv:2308.14711; master leaf and load balancing: eFFF, arXiv:2405.16836.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from fastffn._fff_weights import FffMaster, FffWeights

from ._activations import activation_named
from ._trees import balance_loss, descend, goes_right, hardening_loss, mixture


class FFF(nn.Module):
    """A balanced binary tree whose nodes decide and whose leaves are small FFNs; K trees are summed.

    In training mode every leaf runs and the output is their mean, weighted by the products of σ(z - threshold) (right)
    and 1 - σ (left) along their paths; `hardening_loss`, `balance_loss` and `decisions` of that call are then kept as
    attributes for the loss. In eval mode decisions are hard and each token runs one leaf per tree: what
    ``fastffn.fff`` computes from `export()`.

    Args:
        d_model: width of x [..., d_model].
        leaf_width: neurons of a leaf.
        d_out: width of y; d_model unless given.
        depth: of the trees: 2^depth leaves, 2^depth - 1 nodes. 0 is one plain FFN.
        trees: how many are summed.
        activation: "identity", "relu", "relu2", "gelu", "gelu_tanh" or "silu".
        node_bias, bias: whether the nodes and the leaves have biases.
        master_width: neurons of eFFF's master leaf, which every token runs; 0 for none. eFFF takes 8.
        region_leak: in training, probability with which a decision of one token at one node is turned round.
        dropout: on the hidden activations of leaves, in training.
        tie: a node goes right where z is "ge" (as in the reference's evaluation) or "gt" its threshold.

    Attributes:
        threshold: None, or a buffer [trees, nodes] that decisions compare z with; see `set_thresholds`.
    """

    def __init__(
        self,
        d_model: int,
        leaf_width: int,
        d_out: int | None = None,
        *,
        depth: int,
        trees: int = 1,
        activation: str = "gelu",
        node_bias: bool = True,
        bias: bool = True,
        master_width: int = 0,
        region_leak: float = 0.0,
        dropout: float = 0.0,
        tie: str = "ge",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        d_out = d_model if d_out is None else d_out
        for name, value, least in (
            ("d_model", d_model, 1), ("leaf_width", leaf_width, 1), ("d_out", d_out, 1), ("depth", depth, 0),
            ("trees", trees, 1), ("master_width", master_width, 0),
        ):  # fmt: skip
            if value < least:
                raise ValueError(f"FFF: {name} is {value}, expected at least {least}")
        for name, share in (("region_leak", region_leak), ("dropout", dropout)):
            if not 0 <= share <= 1:
                raise ValueError(f"FFF: {name} is {share}, expected 0 to 1")
        if tie not in ("ge", "gt"):
            raise ValueError(f"FFF: tie is {tie!r}, expected 'ge' or 'gt'")
        self.d_model, self.leaf_width, self.d_out = d_model, leaf_width, d_out
        self.depth, self.trees, self.tie = depth, trees, tie
        self.activation, self.region_leak, self.dropout = activation, region_leak, dropout
        self._act = activation_named(activation, "FFF")

        def parameter(bound: float, *shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype).uniform_(-bound, bound))

        nodes, leaves = 2**depth - 1, 2**depth
        into, out = 1 / math.sqrt(d_model), 1 / math.sqrt(leaf_width * trees)
        self.node_weight = parameter(into, trees, nodes, d_model)
        self.node_bias = parameter(into, trees, nodes) if node_bias else None
        self.w_up = parameter(into, trees, leaves, leaf_width, d_model)
        self.b_up = parameter(into, trees, leaves, leaf_width) if bias else None
        self.w_down = parameter(out, trees, leaves, d_out, leaf_width)
        self.b_down = parameter(out, trees, leaves, d_out) if bias else None
        self.register_buffer("threshold", None)
        self.master_width = master_width
        if master_width:
            out = 1 / math.sqrt(master_width)
            self.master_up = parameter(into, master_width, d_model)
            self.master_b_up = parameter(into, master_width) if bias else None
            self.master_down = parameter(out, d_out, master_width)
            self.master_b_down = parameter(out, d_out) if bias else None
            self.mix = nn.Parameter(torch.tensor(0.5, device=device, dtype=dtype))
        self.decisions: Any = None
        self.hardening_loss: Any = None
        self.balance_loss: Any = None

    def extra_repr(self) -> str:
        """Shapes, for print."""
        return (
            f"d_model={self.d_model}, leaf_width={self.leaf_width}, d_out={self.d_out}, depth={self.depth}, "
            f"trees={self.trees}, activation={self.activation}, master_width={self.master_width}"
        )

    def set_thresholds(self, threshold: Any) -> None:
        """Nodes go right where z exceeds these, [trees, nodes]; None: 0. A buffer, not trained."""
        if threshold is not None and tuple(threshold.shape) != tuple(self.node_weight.shape[:2]):
            expected = tuple(self.node_weight.shape[:2])
            raise ValueError(f"FFF: threshold has shape {tuple(threshold.shape)}, expected {expected}")
        self.threshold = None if threshold is None else threshold.detach().to(self.node_weight)

    def forward(self, x: Any, *, hard: bool | None = None, leaf: Any = None) -> Any:
        """y [..., d_out] of x [..., d_model].

        Args:
            hard: hard decisions (nodes then get no gradient) or soft ones; soft in training mode unless given.
            leaf: [..., trees] forces the leaves, instead of any decision.
        """
        if x.shape[-1] != self.d_model:
            raise ValueError(f"FFF: x has shape {tuple(x.shape)}, expected (..., {self.d_model})")
        rows = x.reshape(-1, self.d_model)
        if leaf is not None:
            y = self._leaves(rows, leaf.reshape(-1, self.trees))
        elif not self.training if hard is None else hard:
            y = self._leaves(rows, self.route(rows)[0])
        else:
            y = self._soft(rows)
        if self.master_width:
            share = torch.sigmoid(self.mix)
            y = share * y + (1 - share) * self._master(rows)
        return y.reshape(*x.shape[:-1], self.d_out)

    def route(self, x: Any) -> tuple[Any, Any]:
        """Where hard decisions lead: (leaf [tokens, trees], smallest |z - threshold| on the way [tokens, trees])."""
        rows = x.reshape(-1, self.d_model)
        return descend(rows, self.node_weight, self.node_bias, self.threshold, self.depth, self.tie)

    def logits(self, x: Any) -> Any:
        """z [tokens, trees, nodes], at every node."""
        z = torch.einsum("td,knd->tkn", x.reshape(-1, self.d_model), self.node_weight)
        return z if self.node_bias is None else z + self.node_bias

    def _soft(self, x: Any) -> Any:
        z = self.logits(x)
        clean = torch.sigmoid(z if self.threshold is None else z - self.threshold)
        p = clean
        if self.training and self.region_leak > 0:
            leaks = torch.rand_like(clean) < self.region_leak
            p = torch.where(leaks, 1 - clean, clean)
        weights = mixture(p, self.depth)
        self.decisions = p
        self.hardening_loss = hardening_loss(p)
        with torch.no_grad():
            chosen = mixture(goes_right(z, self.threshold, self.tie).to(p.dtype), self.depth).argmax(dim=-1)
        self.balance_loss = balance_loss(weights, chosen)

        hidden = torch.einsum("td,kgld->tkgl", x, self.w_up)
        hidden = self._dropped(self._act(hidden if self.b_up is None else hidden + self.b_up))
        # The weight of a leaf multiplies its hidden values: outputs of all leaves are never held at once.
        y = torch.einsum("tkgl,kgol->to", hidden * weights[..., None], self.w_down)
        return y if self.b_down is None else y + torch.einsum("tkg,kgo->to", weights, self.b_down)

    def _leaves(self, x: Any, leaf: Any) -> Any:
        """Every token through its leaf of each tree, grouped by leaf; where a call is traced, each with its own copy of it."""
        if torch.compiler.is_compiling():  # which leaves there are depends on data
            tree = torch.arange(self.trees, device=leaf.device)
            hidden = torch.einsum("td,tkld->tkl", x, self.w_up[tree, leaf])
            hidden = self._dropped(self._act(hidden if self.b_up is None else hidden + self.b_up[tree, leaf]))
            traced = torch.einsum("tkl,tkol->to", hidden, self.w_down[tree, leaf])
            return traced if self.b_down is None else traced + self.b_down[tree, leaf].sum(1)
        y = torch.zeros((x.shape[0], self.d_out), dtype=x.dtype, device=x.device)
        for tree in range(self.trees):
            for index in torch.unique(leaf[:, tree]).tolist():
                rows = (leaf[:, tree] == index).nonzero().squeeze(-1)
                part = nn.functional.linear(
                    x[rows], self.w_up[tree, index], None if self.b_up is None else self.b_up[tree, index]
                )
                part = nn.functional.linear(
                    self._dropped(self._act(part)),
                    self.w_down[tree, index],
                    None if self.b_down is None else self.b_down[tree, index],
                )
                y = y.index_add(0, rows, part.to(y.dtype))
        return y

    def _master(self, x: Any) -> Any:
        hidden = self._dropped(self._act(nn.functional.linear(x, self.master_up, self.master_b_up)))
        return nn.functional.linear(hidden, self.master_down, self.master_b_down)

    def _dropped(self, hidden: Any) -> Any:
        return nn.functional.dropout(hidden, self.dropout, self.training) if self.dropout else hidden

    def export(self) -> FffWeights:
        """The weights as plain f32 NumPy arrays, for ``fastffn``."""
        master = None
        if self.master_width:
            master = FffMaster(
                _array(self.master_up), _array(self.master_down), _maybe(self.master_b_up),
                _maybe(self.master_b_down), float(self.mix.detach()),
            )  # fmt: skip
        return FffWeights(
            nodes=_array(self.node_weight), node_biases=_maybe(self.node_bias), thresholds=_maybe(self.threshold),
            w_up=_array(self.w_up), w_down=_array(self.w_down), b_up=_maybe(self.b_up), b_down=_maybe(self.b_down),
            activation=self.activation, tie=self.tie, master=master,
        )  # fmt: skip

    @classmethod
    def from_weights(cls, weights: FffWeights, **options: Any) -> FFF:
        """A module that holds these weights, to train them further; `options`: region_leak, dropout, device, dtype."""
        if weights.w_up is None:
            raise ValueError("FFF: the weights are those of the all-node form; expected the leaf form")
        biased = weights.b_up is not None or weights.b_down is not None
        module = cls(
            weights.d_model, weights.leaf_width, weights.d_out, depth=weights.depth, trees=weights.trees,
            activation=weights.activation, node_bias=weights.node_biases is not None, bias=biased,
            master_width=0 if weights.master is None else weights.master.w_up.shape[0], tie=str(weights.tie), **options,
        )  # fmt: skip
        given = {"node_weight": weights.nodes, "node_bias": weights.node_biases}
        given |= {name: getattr(weights, name) for name in ("w_up", "b_up", "w_down", "b_down")}
        if weights.master is not None:
            master = weights.master
            if master.mix is None:
                raise ValueError("FFF: a master leaf without mix is not supported")
            given |= {"master_up": master.w_up, "master_down": master.w_down, "mix": np.float32(master.mix)}
            given |= {"master_b_up": master.b_up, "master_b_down": master.b_down}
            if biased != (master.b_up is not None or master.b_down is not None):
                raise ValueError("FFF: the leaves and the master leaf must both have biases, or neither")
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                value = given[name]
                parameter.copy_(torch.zeros(()) if value is None else torch.from_numpy(np.array(value)))
        if weights.thresholds is not None:
            module.set_thresholds(torch.from_numpy(np.array(weights.thresholds)))
        return module


def _array(tensor: Any) -> Any:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy().copy()


def _maybe(tensor: Any) -> Any:
    return None if tensor is None else _array(tensor)
