"""Fast feedforward trees: pack them, read them, and ask where tokens go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fastffn import _copies, _core
from fastffn._core import fff
from fastffn._device_tree import device_of, tree_to_cpu, tree_to_device

__all__ = [
    "FffRoute", "TreeInfo", "fff", "fff_route", "fff_workspace", "pack_tree", "tree_info", "unpack_tree", "verify_tree"
]  # fmt: skip


class FffRoute(NamedTuple):
    """Where tokens go.

    Attributes:
        leaf: [..., trees], int32: 0 to 2^depth - 1. In the all-node form, nodes of the last level.
        margin: [..., trees], f32: the smallest \\|z - threshold\\| of a token's decisions, how far it is from another leaf.
            Infinity at depth 0, NaN where a z is.
        z: [..., trees, levels], f32, of the nodes visited; None unless asked for.
    """

    leaf: Any
    margin: Any
    z: Any


@dataclass(frozen=True)
class TreeInfo:
    """What a packed tree holds.

    Attributes:
        form: "leaf" or "nodes" (the all-node form).
        trees: how many trees are summed.
        depth: decisions of a token in each.
        nodes: nodes per tree: 2^depth - 1 in the leaf form, 2^(depth + 1) - 1 in the all-node form.
        d_model: features of x.
        d_out: features of y; 0 in the leaf form, where the leaves say it.
        format: of the output rows.
        route_format: of the rows that decide.
        tie: "ge" or "gt": a token goes right when z is that of the threshold.
        has_bias, has_threshold: whether they were given.
        nbytes: bytes in all.
    """

    form: str
    trees: int
    depth: int
    nodes: int
    d_model: int
    d_out: int
    format: str
    route_format: str
    tie: str
    has_bias: bool
    has_threshold: bool
    nbytes: int

    @property
    def leaves(self) -> int:
        """Leaves of each tree, 2^depth; in the all-node form, nodes of the last level."""
        return 1 << self.depth

    @property
    def levels(self) -> int:
        """Nodes that a token visits in each tree."""
        return self.depth + (self.form == "nodes")


def pack_tree(
    w_node: Any,
    b_node: Any = None,
    w_out: Any = None,
    *,
    threshold: Any = None,
    format: str = "f32",
    route_format: str | None = None,
    tie: str | None = None,
    device: Any = None,
) -> Any:
    """Trees in the order and format that the kernels read.

    A token at node n computes z = x · w_node[n] + b_node[n] and goes right, to 2n + 2, when z >= threshold[n] ("ge") or
    z > threshold[n] ("gt"), else left, to 2n + 1; NaN goes left.

    Args:
        w_node: [nodes, d_model], or [trees, nodes, d_model] of trees that are summed; f32, f16, bf16 or f64, any strides.
            nodes = 2^depth - 1 in the leaf form (depth 0: shape (0, d_model)), 2^(depth + 1) - 1 in the all-node form.
        b_node: [nodes] or [trees, nodes]; None for 0.
        w_out: None for the leaf form. For the all-node form a row per node, [nodes, d_out] or [trees, nodes, d_out]:
            UltraFastBERT's ``linear_out.weight`` [d_out, trees · nodes] is ``w.T.reshape(trees, nodes, d_out)``.
        threshold: as b_node; None for 0.
        format: "f32", "f16", "bf16" or "int8" of w_out. int8 is symmetric with a scale per node; x is never quantised.
        route_format: the same of w_node. None: `format`. (The leaf form has only these rows; keep them "f32".)
        tie: where a token goes whose z equals the threshold: "ge" right, "gt" left. None: as the form's reference does,
            "ge" in the leaf form, "gt" in the all-node form.
        device: a CUDA device for the tree, as :func:`fastffn.pack` takes it; the default is where w_node is.

    Returns:
        A contiguous one-dimensional uint8 array of w_node's kind, as :func:`fastffn.pack` makes them; a
        :class:`fastffn.DeviceTree` on a CUDA device.

    Raises:
        ValueError: shapes, dtypes, formats or names that do not fit; finite weights beyond the range of the format; for
            int8, NaN or infinite ones.
        TypeError: an argument that is no array.
        BufferError: an array that cannot be read where it is.
    """
    chosen = tie if tie is not None else "ge" if w_out is None else "gt"
    place = device_of(w_node, device)
    if place is not None:
        w_node, b_node, w_out, threshold = (
            part if part is None else _copies.to_host(part) for part in (w_node, b_node, w_out, threshold)
        )
    packed = _core.pack_tree(
        w_node, b_node, w_out, threshold, format, format if route_format is None else route_format, chosen
    )
    return packed if place is None else tree_to_device(packed, place, operation="pack_tree")


def tree_info(tree: Any) -> TreeInfo:
    """What ``tree`` holds, from its header alone.

    Raises:
        ValueError: bytes that are no packed tree of this version, a damaged header, or a size that does not fit it.
    """
    return TreeInfo(*_core.tree_info(tree))


def verify_tree(tree: Any) -> None:
    """Reads every byte of ``tree`` and compares the checksum that :func:`pack_tree` wrote.

    Raises:
        ValueError: as :func:`tree_info`, or weights whose checksum differs.
    """
    if isinstance(tree, _core.DeviceTree):
        tree = tree_to_cpu(tree)
    _core.verify_tree(tree)


def unpack_tree(tree: Any) -> dict[str, Any]:
    """The parts of ``tree``, dequantised, as f32 arrays of its kind, on its device.

    Returns:
        "w_node" [trees, nodes, d_model], "b_node" and "threshold" [trees, nodes], "w_out" [trees, nodes, d_out] or None.

    Raises:
        ValueError: damaged, truncated or foreign bytes (the checksum of all of them is compared).
    """
    names = ("w_node", "b_node", "threshold", "w_out")
    if not isinstance(tree, _core.DeviceTree):
        return dict(zip(names, _core.unpack_tree(tree), strict=True))
    parts = _core.unpack_tree(_core.tree_to_cpu_layout(tree.copy_to_host()))
    return {
        name: part if part is None else _copies.to_device(part, tree.array, "unpack_tree")
        for name, part in zip(names, parts, strict=True)
    }


def fff_route(
    x: Any, tree: Any, *, z: bool = False, plan: str = "auto", stream: Any = None, workspace: Any = None
) -> FffRoute:
    """Where the tokens of x go, as :func:`fastffn.fff` would send them.

    Args:
        x: [..., d_model], as :func:`fastffn.fff`.
        tree: of :func:`pack_tree`, of either form.
        z: also return z of every node visited.
        plan: as :func:`fastffn.fff`; all give the same bits on the CPU.
        stream, workspace: as :func:`fastffn.fff`.

    Returns:
        :class:`FffRoute`, arrays of x's kind.

    Raises:
        ValueError, TypeError, BufferError, RuntimeError, MemoryError: as :func:`fastffn.linear`.
    """
    return FffRoute(*_core.fff_route(x, tree, z, plan, stream, workspace))


def fff_workspace(x: Any, tree: Any, *weights: Any, threads: int = 0, **options: Any) -> int:
    """Bytes of workspace that ``fff(x, tree, …)`` uses; kept for later calls.

    Args:
        x, tree, weights, options: as :func:`fastffn.fff`; of x only the shape and dtype matter.
        threads: for this many threads; 0 for what a call would use now. On a CUDA device, where ``workspace=`` takes so many bytes,
            leave it out.
    """
    options.setdefault("activation", "identity")
    if isinstance(tree, _core.DeviceTree):
        if threads:
            raise ValueError(f"fff_workspace: threads is {threads}, and the tree is on a CUDA device; leave it out")
        return _core.device_workspace(_core.fff, x, tree, *weights, **options)
    return _core.fff_workspace(threads, x, tree, *weights, **options)
