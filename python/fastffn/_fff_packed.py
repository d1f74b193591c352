"""Fast feedforward trees with all they need to run in one object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastffn import _copies
from fastffn._device_tree import device_of
from fastffn._fff import FffRoute, fff, fff_route, pack_tree
from fastffn._fff_weights import FffWeights
from fastffn._weights import pack


@dataclass(frozen=True)
class PackedFff:
    """The arguments of :func:`fastffn.fff` beside x, ready to call: ``y = packed(x)``.

    Attributes:
        tree: of :func:`fastffn.pack_tree`.
        options: everything else, by the names that :func:`fastffn.fff` has for it. Arrays: keep them where you keep weights.
    """

    tree: Any
    options: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self,
        x: Any,
        *,
        leaf: Any = None,
        plan: str = "auto",
        out: Any = None,
        stream: Any = None,
        workspace: Any = None,
    ) -> Any:
        """``fastffn.fff`` of x [..., d_model]: y [..., d_out], as x in kind and dtype."""
        if leaf is None and plan == "auto" and stream is None and workspace is None:
            return fff(x, self.tree, out=out, **self.options)
        return fff(x, self.tree, leaf=leaf, plan=plan, out=out, stream=stream, workspace=workspace, **self.options)

    def route(self, x: Any, *, z: bool = False) -> FffRoute:
        """``fastffn.fff_route`` of x: leaves, margins, and z of the visited nodes if asked for."""
        return fff_route(x, self.tree, z=z)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights and biases."""
        held = [self.tree, *(value for value in self.options.values() if hasattr(value, "nbytes"))]
        return sum(int(array.nbytes) for array in held)


def pack_fff(
    weights: FffWeights, format: str = "f32", *, route_format: str | None = None, device: Any = None
) -> PackedFff:
    """Plain tree weights in the order and format that the kernels read.

    Args:
        weights: of any form; from a loader, from training (``module.export()``), from a conversion, or made by hand.
        format: of what is multiplied after the decisions: leaves, output rows, the master leaf; one of
            :func:`fastffn.formats`.
        route_format: of the nodes that decide, "f32", "f16", "bf16" or "int8". None: "f32" in the leaf form, where they are
            few; `format` in the all-node form, where they are half of the weights. Less precision moves near ties.
        device: a CUDA device for all of them, as :func:`fastffn.pack` takes it; None for the CPU.

    Raises:
        ValueError: as :func:`fastffn.pack` and :func:`fastffn.pack_tree`.
    """
    tree = pack_tree(
        weights.nodes, weights.node_biases, weights.w_out, threshold=weights.thresholds,
        format="f32" if weights.w_out is None else format, route_format=route_format, tie=weights.tie,
        device=device,
    )  # fmt: skip
    options: dict[str, Any] = {"activation": weights.activation}
    if weights.w_up is not None and weights.w_down is not None:
        options["w_up"], options["w_down"] = (
            pack(_stacked(w), format, device=device) for w in (weights.w_up, weights.w_down)
        )
        for name in ("b_up", "b_down"):
            if getattr(weights, name) is not None:
                options[name] = _placed(_stacked(np.asarray(getattr(weights, name), np.float32)), device)
    master = weights.master
    if master is not None:
        options["master_up"], options["master_down"] = (
            pack(w, format, device=device) for w in (master.w_up, master.w_down)
        )
        for name in ("b_up", "b_down"):
            if getattr(master, name) is not None:
                options[f"master_{name}"] = _placed(np.ascontiguousarray(getattr(master, name), np.float32), device)
        if master.mix is not None:
            options["mix"] = master.mix
    return PackedFff(tree, options)


def _placed(array: Any, device: Any) -> Any:
    """A bias on the device of the weights."""
    place = device_of(array, device)
    return array if place is None else _copies.to_device(array, place, "pack_fff")


def _stacked(array: Any) -> Any:
    """[trees, leaves, …] → [trees · leaves, …], tree after tree."""
    return np.ascontiguousarray(array.reshape(-1, *array.shape[2:]))
