"""The plain weights of fast feedforward trees: what loaders, training and conversion produce, and `pack` takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
TIE_RULES = ("ge", "gt")
ACTIVATIONS = ("identity", "relu", "relu2", "gelu", "gelu_tanh", "silu")


@dataclass(frozen=True)
class FffMaster:
    """eFFF's master leaf: y = σ(mix) · trees(x) + (1 - σ(mix)) · down(act(up(x))) (arXiv:2405.16836, as its code has it).

    Attributes:
        w_up: [width, d_model], w_down: [d_out, width]; b_up [width] and b_down [d_out] or None.
        mix: the learnt number before the sigmoid. None adds the master leaf to the trees instead, unmixed.
    """

    w_up: F32
    w_down: F32
    b_up: F32 | None = None
    b_down: F32 | None = None
    mix: float | None = 0.5


@dataclass(frozen=True)
class FffWeights:
    """Trees with plain f32 weights, checked when made.

    Leaf form (arXiv:2308.14711): ``w_up`` and ``w_down`` are given. Nodes decide, and one leaf of width l runs per tree.
    All-node form (arXiv:2311.10770): ``w_out`` is given. Every visited node is a neuron whose z is also its decision.
    Nodes are in heap order: node n has the children 2n + 1, left, and 2n + 2, right.

    Attributes:
        nodes: [trees, nodes, d_model]; 2^depth - 1 nodes in the leaf form, 2^(depth + 1) - 1 in the all-node form.
        node_biases: [trees, nodes], added to z, or None.
        thresholds: [trees, nodes]; a node goes right where z exceeds its threshold. None: 0.
        w_up, w_down: [trees, 2^depth, l, d_model] and [trees, 2^depth, d_out, l]; b_up and b_down to match, or None.
        w_out: [trees, nodes, d_out].
        activation: of the leaves, or of the nodes in the all-node form, and of the master leaf.
        tie: a node goes right where z "ge" or "gt" its threshold; None is the form's usual, "ge" with leaves and
            "gt" without.
        master: eFFF's master leaf, or None.

    Raises:
        ValueError: shapes that do not belong together, or an unknown activation or tie rule.
    """

    nodes: F32
    node_biases: F32 | None = None
    thresholds: F32 | None = None
    w_up: F32 | None = None
    w_down: F32 | None = None
    b_up: F32 | None = None
    b_down: F32 | None = None
    w_out: F32 | None = None
    activation: str = "gelu"
    tie: str | None = None
    master: FffMaster | None = None
    depth: int = field(init=False)

    def __post_init__(self) -> None:
        leaf = self.w_out is None
        if leaf == (self.w_up is None) or leaf == (self.w_down is None):
            raise ValueError("FffWeights: expected w_up and w_down (the leaf form) or w_out (the all-node form)")
        object.__setattr__(self, "depth", self._check_nodes(leaf))
        if self.tie is None:
            object.__setattr__(self, "tie", "ge" if leaf else "gt")
        elif self.tie not in TIE_RULES:
            raise ValueError(f"FffWeights: tie is {self.tie!r}, expected 'ge' or 'gt'")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"FffWeights: activation is {self.activation!r}, expected one of {', '.join(ACTIVATIONS)}")
        trees, count, d_model = self.nodes.shape
        self._expect("node_biases", (trees, count))
        self._expect("thresholds", (trees, count))
        if leaf:
            assert self.w_up is not None and self.w_down is not None
            leaves, width = 2**self.depth, self.w_up.shape[2] if self.w_up.ndim == 4 else -1
            self._expect("w_up", (trees, leaves, width, d_model))
            self._expect("w_down", (trees, leaves, self.d_out, width))
            self._expect("b_up", (trees, leaves, width))
            self._expect("b_down", (trees, leaves, self.d_out))
        else:
            self._expect("w_out", (trees, count, self.d_out))
            for name in ("b_up", "b_down"):
                if getattr(self, name) is not None:
                    raise ValueError(f"FffWeights: {name} belongs to the leaf form; the all-node form has node_biases")
        if self.master is not None:
            width = self.master.w_up.shape[0]
            for name, shape in (
                ("w_up", (width, d_model)), ("w_down", (self.d_out, width)), ("b_up", (width,)), ("b_down", (self.d_out,)),
            ):  # fmt: skip
                _expect_shape(f"master.{name}", getattr(self.master, name), shape, self.nodes)

    def _check_nodes(self, leaf: bool) -> int:
        if self.nodes.ndim != 3:
            raise ValueError(f"FffWeights: nodes has shape {self.nodes.shape}, expected (trees, nodes, d_model)")
        count: int = int(self.nodes.shape[1]) + 1
        depth: int = count.bit_length() - (1 if leaf else 2)
        if count & (count - 1) or depth < 0 or depth > 30:
            formula = "2^depth - 1 nodes" if leaf else "2^(depth + 1) - 1 nodes"
            raise ValueError(f"FffWeights: nodes has shape {self.nodes.shape}, expected (trees, {formula}, d_model)")
        return depth

    def _expect(self, name: str, shape: tuple[int, ...]) -> None:
        _expect_shape(name, getattr(self, name), shape, self.nodes)

    @property
    def form(self) -> str:
        """ "leaf" or "nodes"."""
        return "leaf" if self.w_out is None else "nodes"

    @property
    def trees(self) -> int:
        """How many trees are summed."""
        return int(self.nodes.shape[0])

    @property
    def leaves(self) -> int:
        """Leaves of a tree, or in the all-node form the nodes of its last level."""
        return 1 << self.depth

    @property
    def d_model(self) -> int:
        """Width of x."""
        return int(self.nodes.shape[2])

    @property
    def d_out(self) -> int:
        """Width of y."""
        if self.w_out is not None:
            return int(self.w_out.shape[-1])
        assert self.w_down is not None
        return int(self.w_down.shape[-2]) if self.w_down.ndim == 4 else -1

    @property
    def leaf_width(self) -> int:
        """Neurons of a leaf; 0 in the all-node form."""
        return 0 if self.w_up is None else int(self.w_up.shape[2])

    @property
    def width(self) -> int:
        """Neurons in all: the width of a dense layer that computed every one of them (deciding nodes not counted)."""
        return self.trees * (self.leaves * self.leaf_width if self.w_out is None else int(self.nodes.shape[1]))

    @property
    def used(self) -> int:
        """Neurons that one token uses, the master leaf's not counted."""
        return self.trees * (self.leaf_width if self.w_out is None else self.depth + 1)


def _expect_shape(name: str, array: Any, shape: tuple[int, ...], nodes: F32) -> None:
    if array is None:
        return
    if tuple(array.shape) != shape:
        raise ValueError(
            f"FffWeights: {name} has shape {tuple(array.shape)}, expected {shape} from nodes {nodes.shape}"
        )
