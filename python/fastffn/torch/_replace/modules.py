"""The modules that take the places of feed-forward layers, beside FFN: experts, and what surrounds BERT's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fastffn as ff
from fastffn.torch._ffn import FFN
from fastffn.torch._functions import moe
from fastffn.torch._packed_module import PackedModule
from fastffn.torch._replace.converted import ConvertedFFN

# Buffers that hold packed weights, and those that hold plain numbers.
PACKED = ("w_up", "w_down", "w_gate")
VECTORS = ("b_up", "b_down", "b_gate", "sub_norm")


class Experts(PackedModule):
    """y = experts(x, ids, weights): x [tokens, d_model], ids and weights [tokens, k] from the model's own router."""

    trainable = False

    def __init__(self, activation: str, buffers: dict[str, Any]) -> None:
        super().__init__()
        self.activation = activation
        for name in (*PACKED, *VECTORS[:3]):
            self.register_buffer(name, buffers.get(name))
        self._shapes = {name: ff.info(w).shape for name in PACKED if (w := buffers.get(name)) is not None}
        self._d_out = self._shapes["w_down"][-2]

    def _expected(self) -> dict[str, tuple[int, ...]]:
        return self._shapes

    def forward(self, x: Any, ids: Any, weights: Any) -> Any:
        return moe(
            x, ids, weights.float(), self.w_up, self.w_down, self.w_gate, self.b_up, self.b_down, self.b_gate,
            activation=self.activation, out_features=self._d_out,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Shape and formats, for print."""
        count, d_ff, d_model = (1, *self._shapes["w_up"])[-3:]
        return f"experts={count}, d_model={d_model}, d_ff={d_ff}, activation={self.activation}, {self._formats()}"


class ResidualNorm(nn.Module):
    """BERT's output: norm(dropout(ffn(x)) + residual), where x is what the layer got, as `Passthrough` hands it on."""

    def __init__(self, ffn: nn.Module, norm: nn.Module, dropout: nn.Module | None) -> None:
        super().__init__()
        self.ffn = ffn
        self.LayerNorm = norm
        self.dropout = nn.Identity() if dropout is None else dropout

    def forward(self, x: Any, residual: Any) -> Any:
        return self.LayerNorm(self.dropout(self.ffn(x)) + residual)


class Passthrough(nn.Module):
    """BERT's intermediate, when the whole layer runs in its output: x as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


# Kinds of modules that a file can name.
KINDS: dict[str, type] = {"FFN": FFN, "Experts": Experts, "ConvertedFFN": ConvertedFFN}
_STAMP = "_fastffn_site"


def stamp(module: nn.Module, site: dict[str, Any]) -> None:
    """Remembers which layer of the model a module took the place of: name, family, shape and rule."""
    setattr(module, _STAMP, site)


def site_of(module: nn.Module) -> dict[str, Any] | None:
    """What `stamp` wrote."""
    return getattr(module, _STAMP, None)


def kind_of(module: nn.Module) -> str | None:
    """The kind's name, or None for a module that a file cannot describe."""
    return next((name for name, kind in KINDS.items() if type(module) is kind), None)


def settings_of(module: nn.Module) -> dict[str, Any]:
    """What a module is beside its buffers; JSON can hold it."""
    if isinstance(module, ConvertedFFN):
        return dict(module.settings)
    settings: dict[str, Any] = {"activation": module.activation}
    return settings | {"sub_norm_eps": module.sub_norm_eps} if isinstance(module, FFN) else settings


def made_of(kind: str, settings: dict[str, Any], buffers: dict[str, Any]) -> nn.Module:
    """The module of a kind with these buffers. KeyError for what is missing."""
    if kind not in KINDS:
        raise KeyError(kind)
    if kind == "ConvertedFFN":
        return ConvertedFFN(settings, buffers)
    if "w_up" not in buffers or "w_down" not in buffers:
        raise KeyError("w_down" if "w_up" in buffers else "w_up")
    if kind == "Experts":
        return Experts(settings["activation"], buffers)
    parts = {name: buffers[name] for name in (*PACKED, *VECTORS) if buffers.get(name) is not None}
    return FFN.from_packed(parts.pop("w_up"), parts.pop("w_down"), **parts, **settings)
