"""ConvertedFFN: a dense layer that `fastffn.convert` cut into experts, with its arrays as buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fastffn as ff
from fastffn.convert._packed import PackedAnalyticRouter, PackedLearnedRouter, PackedMoe

_STACKS = ("w_up", "w_down", "w_gate", "b_up", "b_gate")
_SHARED = ("w_up", "w_down", "w_gate", "b_up", "b_down", "b_gate")
_LEARNED = ("w_in", "w_out")
_ANALYTIC = ("w_up", "w_down", "w_gate", "b_up", "b_gate", "balance")


class ConvertedFFN(nn.Module):
    """y = moe(x) with the router that `fastffn.convert` made."""

    def __init__(self, settings: dict[str, Any], buffers: dict[str, Any]) -> None:
        super().__init__()
        self.settings = settings
        names = [*_STACKS, *(f"shared_{name}" for name in _SHARED)]
        names += [f"router_{name}" for name in (_LEARNED if settings["router"] == "learned" else _ANALYTIC)]
        for name in names:
            self.register_buffer(name, buffers.get(name))

    @staticmethod
    def of(moe: PackedMoe) -> ConvertedFFN:
        """From what `pack` of a converted layer gives."""
        learned = isinstance(moe.router, PackedLearnedRouter)
        parts = {name: getattr(moe, name) for name in _STACKS}
        if moe.shared is not None:
            parts |= {f"shared_{name}": getattr(moe.shared, name) for name in _SHARED}
        parts |= {f"router_{name}": getattr(moe.router, name) for name in (_LEARNED if learned else _ANALYTIC)}
        settings: dict[str, Any] = {"activation": moe.activation, "picks": moe.picks, "router": "learned"}
        if isinstance(moe.router, PackedAnalyticRouter):
            settings |= {"router": "analytic", "router_activation": moe.router.activation, "scale": moe.router.scale}
        buffers = {name: None if part is None else torch.as_tensor(part) for name, part in parts.items()}
        return ConvertedFFN(settings, buffers)

    def forward(self, x: Any) -> Any:
        own = self._buffers  # not __getattr__: it is called for every buffer of every token
        parts = {name: own[name] for name in _STACKS}
        shared = None
        if own["shared_w_up"] is not None:
            shared = ff.SharedExperts(**{name: own[f"shared_{name}"] for name in _SHARED})
        settings = self.settings
        router: PackedLearnedRouter | PackedAnalyticRouter
        if settings["router"] == "learned":
            router = PackedLearnedRouter(own["router_w_in"], own["router_w_out"])
        else:
            arrays = {name: own[f"router_{name}"] for name in _ANALYTIC}
            router = PackedAnalyticRouter(**arrays, activation=settings["router_activation"], scale=settings["scale"])
        return PackedMoe(
            **parts, shared=shared, activation=settings["activation"], picks=settings["picks"], router=router
        )(x)

    def extra_repr(self) -> str:
        info = ff.info(self.w_up)
        return f"{self.settings['picks']} of {info.count} experts of {info.out_features} neurons, {info.format}"
