"""Fast feedforward trees and the dense layers beside them: weights, fastffn, and torch in several ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

import fastffn as ff

Call = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Tree:
    """One all-node tree with random weights, scaled so that decisions split tokens evenly."""

    w_in: torch.Tensor  # (nodes, d_model)
    w_out: torch.Tensor  # (nodes, d_model)
    depth: int  # decisions; depth + 1 nodes are visited

    @staticmethod
    def random(d_model: int, depth: int, seed: int = 0) -> Tree:
        generator = torch.Generator().manual_seed(seed)
        nodes = 2 ** (depth + 1) - 1

        def rows() -> torch.Tensor:
            return torch.randn(nodes, d_model, generator=generator).div_(d_model**0.5)

        return Tree(rows(), rows(), depth)

    @property
    def width(self) -> int:
        return self.w_in.shape[0]


def fastffn_nodes(tree: Tree, format: str = "f32") -> Call:
    packed = ff.pack_tree(tree.w_in, None, tree.w_out, format=format)
    outputs: dict[int, torch.Tensor] = {}

    def call(x: torch.Tensor) -> torch.Tensor:
        out = outputs.get(len(x))
        if out is None:
            out = outputs[len(x)] = torch.empty(len(x), tree.w_out.shape[1], dtype=x.dtype)
        ff.fff(x, packed, activation="gelu", out=out)
        return out

    return call


def torch_dense(d_model: int, d_ff: int, dtype: torch.dtype = torch.float32) -> Call:
    """The dense layer as model code writes it, without biases, eager."""
    generator = torch.Generator().manual_seed(1)
    up = torch.randn(d_ff, d_model, generator=generator).div_(d_model**0.5).to(dtype)
    down = torch.randn(d_model, d_ff, generator=generator).div_(d_ff**0.5).to(dtype)
    return lambda x: F.linear(F.gelu(F.linear(x, up)), down)


def torch_gather(tree: Tree) -> Call:
    """All-node FFF in batched torch: per level gather each token's row and take its dot product, then combine the output
    rows of all levels at once. The published BMM form, with its zero-fills and its needless writes left away."""
    w_in, w_out, levels = tree.w_in, tree.w_out, tree.depth + 1

    def call(x: torch.Tensor) -> torch.Tensor:
        node = torch.zeros(len(x), dtype=torch.long)
        nodes, zs, column = [], [], x.unsqueeze(-1)
        for _ in range(levels):
            z = torch.bmm(w_in.index_select(0, node).unsqueeze(1), column).view(-1)
            nodes.append(node)
            zs.append(z)
            node = 2 * node + 1 + (z > 0)
        hidden = F.gelu(torch.stack(zs, dim=1)).unsqueeze(1)
        rows = w_out.index_select(0, torch.stack(nodes, dim=1).view(-1)).view(len(x), levels, -1)
        return torch.bmm(hidden, rows).squeeze(1)

    return call


def torch_walk(tree: Tree) -> Call:
    """All-node FFF for one token, as fast as we could write it in eager torch: views instead of gathers, one `item` per
    level, and one gather of the output rows."""
    w_in, w_out, levels = tree.w_in, tree.w_out, tree.depth + 1
    rows = list(w_in)  # indexing a list makes no view

    def call(x: torch.Tensor) -> torch.Tensor:
        node, nodes, zs, x = 0, [], [], x.view(-1)
        for _ in range(levels):
            z = torch.dot(rows[node], x).item()
            nodes.append(node)
            zs.append(z)
            node = 2 * node + (2 if z > 0 else 1)
        return F.gelu(torch.tensor([zs])) @ w_out[nodes]

    return call


@dataclass(frozen=True)
class Leaves:
    """One tree with leaves, in the shapes of the fastfeedforward package; no biases."""

    nodes: torch.Tensor  # (2^d - 1, d_model)
    w1s: torch.Tensor  # (2^d, d_model, leaf_width)
    w2s: torch.Tensor  # (2^d, leaf_width, d_model)

    @staticmethod
    def random(d_model: int, depth: int, leaf_width: int, seed: int = 0) -> Leaves:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator) / shape[-2] ** 0.5

        leaves = 2**depth
        nodes = normal(1, leaves - 1, d_model)[0]
        return Leaves(nodes, normal(leaves, d_model, leaf_width), normal(leaves, leaf_width, d_model))


def fastffn_leaves(leaves: Leaves, format: str = "f32") -> Call:
    tree = ff.pack_tree(leaves.nodes)
    up, down = (ff.pack(w.transpose(1, 2), format) for w in (leaves.w1s, leaves.w2s))
    outputs: dict[int, torch.Tensor] = {}

    def call(x: torch.Tensor) -> torch.Tensor:
        out = outputs.get(len(x))
        if out is None:
            out = outputs[len(x)] = torch.empty(len(x), leaves.w2s.shape[2], dtype=x.dtype)
        ff.fff(x, tree, up, down, activation="gelu", out=out)
        return out

    return call


def fastfeedforward_eval(leaves: Leaves) -> Call:
    """The package's own module in eval mode; its leaves are bias-free here, as it drops b2s."""
    import fastfeedforward

    count, d_model, leaf_width = leaves.w1s.shape
    module = fastfeedforward.FFF(d_model, leaf_width, leaves.w2s.shape[2], count.bit_length() - 1, torch.nn.GELU())
    with torch.no_grad():
        for name, value in (("node_weights", leaves.nodes), ("w1s", leaves.w1s), ("w2s", leaves.w2s)):
            getattr(module, name).copy_(value)
        for name in ("node_biases", "b1s", "b2s"):
            getattr(module, name).zero_()
    return module.eval()


def torch_leaves(leaves: Leaves) -> Call:
    """The leaf form in batched torch: gather rows level by level, sort tokens by leaf, one small product per leaf."""
    depth = leaves.w1s.shape[0].bit_length() - 1

    def call(x: torch.Tensor) -> torch.Tensor:
        node, column = torch.zeros(len(x), dtype=torch.long), x.unsqueeze(-1)
        for _ in range(depth):
            z = torch.bmm(leaves.nodes.index_select(0, node).unsqueeze(1), column).view(-1)
            node = 2 * node + 1 + (z >= 0)
        leaf, order = torch.sort(node - (2**depth - 1))
        sorted_x, y = x[order], torch.empty(len(x), leaves.w2s.shape[2])
        found, counts = torch.unique_consecutive(leaf, return_counts=True)
        parts = []
        for index, rows in zip(found.tolist(), sorted_x.split(counts.tolist()), strict=True):
            parts.append(F.gelu(rows @ leaves.w1s[index]) @ leaves.w2s[index])
        y[order] = torch.cat(parts)
        return y

    return call
