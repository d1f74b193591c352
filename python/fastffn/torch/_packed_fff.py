"""Fast feedforward trees on packed weights as an nn.Module: what trained ones run as."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fastffn as ff
from fastffn._fff_packed import pack_fff

from ._device_weights import Held, tree, weight
from ._formats import as_tensor
from ._functions import visible
from ._packed_module import absent_last, in_layout_of, moved_weights

_ARRAYS = ("w_up", "w_down", "b_up", "b_down", "master_up", "master_down", "master_b_up", "master_b_down")


class PackedFFF(nn.Module):
    """``fastffn.fff`` as a module, for inference: of trained :class:`FFF` or :class:`AllNodeFFF`, or of imported weights.

    The tree and the packed weights are uint8 buffers, biases float buffers, so `state_dict`, deepcopy, pickle, torch.compile
    and torch.export take them. Loading checks the checksum of each packed one; ``to("cuda")`` and loading there bring them into the
    order that GPUs read.

    Args:
        weights: a module with ``export()``, or the :class:`fastffn.FffWeights` that it exports and loaders return.
        format: of leaves and output rows, route_format: of the nodes; as :func:`fastffn.pack_fff`.
    """

    def __init__(self, weights: Any, format: str = "f32", *, route_format: str | None = None) -> None:
        super().__init__()
        plain = weights.export() if hasattr(weights, "export") else weights
        packed = pack_fff(plain, format, route_format=route_format)
        options = dict(packed.options)
        self.activation = options.pop("activation")
        self.mix = options.pop("mix", None)
        self.d_model, self.d_out, self.format = plain.d_model, plain.d_out, format
        self.register_buffer("tree", as_tensor(packed.tree))
        for name in _ARRAYS:
            value = options.pop(name, None)
            self.register_buffer(name, None if value is None else as_tensor(value))
        absent_last(self)

    def forward(self, x: Any, *, leaf: Any = None, out: Any = None) -> Any:
        """y [..., d_out] of x [..., d_model]; leaf and out as :func:`fastffn.fff`."""
        held = self._held()
        return visible("fff")(
            x, held["tree"], activation=self.activation, leaf=leaf, mix=self.mix, out=out, out_features=self.d_out,
            **{name: held[name] for name in _ARRAYS},
        )  # fmt: skip

    def _held(self) -> Any:
        held = self._buffers
        if torch.compiler.is_compiling() or not held["tree"].is_cuda:
            return held
        mine: Held = self.__dict__.setdefault("_on_device", Held())
        packed = {name: w for name, w in held.items() if w is not None and w.dtype == torch.uint8}
        return {**held, **{name: mine.get_weight(name, w) for name, w in packed.items()}}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        moved = moved_weights(self._buffers, tuple(self._buffers), fn)
        super()._apply(fn, recurse)
        self._buffers.update(moved)
        return self

    def route(self, x: Any) -> ff.FffRoute:
        """``fastffn.fff_route`` of x: leaves and margins. Not traced."""
        return ff.fff_route(x.detach(), tree(self.tree))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        errors = rest[-1]
        for name, mine in self._buffers.items():
            given = state_dict.get(prefix + name)
            if mine is None or mine.dtype != torch.uint8 or given is None:
                continue
            try:
                keeps = rest[0].get("assign_to_params_buffers", False)
                if given.dtype == torch.uint8 and given.dim() == 1:
                    given = in_layout_of(given, given.device if keeps else mine.device, name)
                    state_dict = {**state_dict, prefix + name: given}
                if given.shape != mine.shape:
                    raise ValueError(f"{given.numel()} bytes, expected {mine.numel()}")
                here, opened = (tree(given), tree(mine)) if name == "tree" else (weight(given), weight(mine))
                (ff.verify_tree if name == "tree" else ff.verify)(here)
                same = ff.tree_info if name == "tree" else ff.info
                if same(here) != same(opened):
                    raise ValueError(f"holds {same(here)}, expected {same(opened)}")
            except (ValueError, BufferError) as error:
                errors.append(f"PackedFFF: {prefix + name}: {error}")
        if not errors:
            super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """What the tree is, for print."""
        about = ff.tree_info(tree(self.tree))
        return (
            f"d_model={self.d_model}, d_out={self.d_out}, form={about.form}, depth={about.depth}, trees={about.trees},"
            f" activation={self.activation}, format={self.format}"
        )
