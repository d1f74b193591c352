"""How tokens use a tree: loads of leaves and nodes, entropy, dead leaves, how close decisions are; as numbers and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastffn import _copies

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class FffStats:
    """Made by :func:`fff_stats`; print it, or `save` it as a picture.

    Attributes:
        depth: decisions on a token's way.
        leaf_counts: [trees, 2^depth]: tokens that reach each leaf (or node of the last level, in the all-node form).
        node_counts: [trees, 2^depth - 1]: tokens that pass each deciding node, in heap order.
        margins: [tokens, trees]: the smallest |z - threshold| on each token's way; None where they are not known.
    """

    depth: int
    leaf_counts: I64
    node_counts: I64
    margins: F64 | None = None

    @property
    def tokens(self) -> int:
        """How many tokens were counted."""
        return int(self.leaf_counts[0].sum())

    @property
    def trees(self) -> int:
        """How many trees."""
        return int(self.leaf_counts.shape[0])

    @property
    def leaves(self) -> int:
        """Leaves of a tree."""
        return int(self.leaf_counts.shape[1])

    @property
    def shares(self) -> F64:
        """[trees, leaves]: the fraction of tokens that each leaf gets."""
        shares: F64 = self.leaf_counts / max(self.tokens, 1)
        return shares

    @property
    def entropy(self) -> F64:
        """[trees]: entropy of the leaf shares in bits; `depth` bits where all leaves share evenly, 0 where one has all."""
        shares = self.shares
        bits = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
        entropy: F64 = np.maximum(-(shares * bits).sum(axis=1), 0.0)
        return entropy

    @property
    def dead_leaves(self) -> I64:
        """[trees]: leaves that no token reaches. Below a few tokens per leaf some are empty by chance."""
        return np.asarray((self.leaf_counts == 0).sum(axis=1), np.int64)

    @property
    def max_over_mean(self) -> F64:
        """[trees]: tokens of the fullest leaf over the mean: 1 where all share evenly, 2^depth where one has all."""
        return np.asarray(self.leaf_counts.max(axis=1) * self.leaves / max(self.tokens, 1), np.float64)

    def close_decisions(self, margin: float) -> float:
        """The fraction of ways on which some decision is closer than `margin`: rounding of that size may change them."""
        if self.margins is None:
            raise ValueError("FffStats: the margins are not known; make it from x and a tree")
        return float((self.margins < margin).mean()) if self.margins.size else 0.0

    def __str__(self) -> str:
        lines = [f"{self.tokens} tokens, {self.trees} tree(s) of depth {self.depth}, {self.leaves} leaves each"]
        lines.append("tree  entropy (bits)  effective leaves  dead leaves  max/mean load")
        for tree in range(self.trees):
            entropy = self.entropy[tree]
            lines.append(
                f"{tree:4}  {entropy:6.2f} of {self.depth:4}  {2**entropy:16.1f}  {self.dead_leaves[tree]:11}"
                f"  {self.max_over_mean[tree]:13.2f}"
            )
        if self.margins is not None and not np.isnan(self.margins).all():  # some is known (there may be no tokens)
            quantiles = np.nanquantile(self.margins, [0.01, 0.1, 0.5]) if self.depth else [np.inf] * 3
            lines.append("smallest margin on the way: " + ", ".join(
                f"{name} {value:.3g}" for name, value in zip(("1%", "10%", "median"), quantiles, strict=True)
            ))  # fmt: skip
        return "\n".join(lines)

    def svg(self) -> str:
        """The picture as one SVG that stands alone: the trees by level, sorted leaf loads, margins."""
        from fastffn._fff_picture import picture

        return picture(self)

    def save(self, path: str | Path) -> Path:
        """Writes the picture to `path`: an SVG, or a page with the numbers in text too where it ends in .html."""
        from fastffn._fff_picture import page

        path = Path(path)
        if path.suffix.lower() not in (".svg", ".html", ".htm"):
            raise ValueError(f"FffStats.save: {path.name!r} ends in {path.suffix!r}, expected .svg or .html")
        path.write_text(self.svg() if path.suffix.lower() == ".svg" else page(self), encoding="utf-8")
        return path


def stats_of_leaves(leaf: Any, depth: int, margins: Any = None) -> FffStats:
    """Statistics from leaves that are known already, such as those a training module gives.

    Args:
        leaf: [..., trees], integers in [0, 2^depth).
        depth: decisions on the way; 2^depth leaves.
        margins: [..., trees], the smallest |z - threshold| on the way of each, or None.

    Raises:
        ValueError: leaves out of range, or margins of another shape.
    """
    leaf = _numpy(leaf)
    if leaf.ndim == 0 or not np.issubdtype(leaf.dtype, np.integer):
        raise ValueError(f"fff_stats: leaf is {leaf.dtype} of shape {leaf.shape}, expected integers [..., trees]")
    rows = leaf.reshape(-1, leaf.shape[-1]).astype(np.int64)
    if rows.size and not (rows.min() >= 0 and rows.max() < 1 << depth):
        raise ValueError(f"fff_stats: leaf has values {rows.min()} to {rows.max()}, expected 0 to {(1 << depth) - 1}")
    if margins is not None:
        margins = _numpy(margins).astype(np.float64)
        if margins.shape != leaf.shape:
            raise ValueError(f"fff_stats: margins have shape {margins.shape}, expected {leaf.shape} as leaf")
        margins = margins.reshape(rows.shape)
    counts = np.stack([np.bincount(column, minlength=1 << depth) for column in rows.T])
    # A node's tokens are those of its children, from the leaves up to the root.
    levels = [counts]
    for _ in range(depth):
        levels.append(levels[-1].reshape(len(counts), -1, 2).sum(axis=-1))
    nodes = np.concatenate(levels[:0:-1], axis=1) if depth else counts[:, :0]
    return FffStats(depth, counts.astype(np.int64), nodes.astype(np.int64), margins)


def fff_stats(x: Any, tree: Any) -> FffStats:
    """How the tokens of x use the trees: leaf and node counts, entropy, dead leaves, load, margins.

    Args:
        x: [..., d_model], as :func:`fastffn.fff` takes it.
        tree: from :func:`fastffn.pack_tree`, or a :class:`PackedFff`.

    Raises:
        As :func:`fastffn.fff_route`.
    """
    from fastffn._fff import fff_route, tree_info

    tree = getattr(tree, "tree", tree)
    route = fff_route(x, tree)
    return stats_of_leaves(route.leaf, tree_info(tree).depth, route.margin)


def _numpy(array: Any) -> Any:
    return np.asarray(_copies.to_host(array))
