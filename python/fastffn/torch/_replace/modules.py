"""The modules that take the places of feed-forward layers, beside FFN: experts, BitNet's with its norm, BERT's surroundings."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fastffn as ff
from fastffn.torch._activations import ACTIVATIONS
from fastffn.torch._ffn import FFN
from fastffn.torch._functions import linear
from fastffn.torch._replace.converted import ConvertedFFN

# Buffers that hold packed weights, and those that hold plain numbers.
PACKED = ("w_up", "w_down", "w_gate")
BIASES = ("b_up", "b_down", "b_gate")


class _Held(nn.Module):
    """Packed weights and plain numbers as buffers."""

    def __init__(self, activation: str, buffers: dict[str, Any]) -> None:
        super().__init__()
        self.activation = activation
        for name in (*PACKED, *BIASES):
            self.register_buffer(name, buffers.get(name))

    def extra_repr(self) -> str:
        parts = [ff.info(part) for part in (self.w_up, self.w_gate, self.w_down) if part is not None]
        up, down = parts[0], parts[-1]
        formats = "/".join(dict.fromkeys(part.format for part in parts))
        count = f"{up.count} experts, " if up.count > 1 else ""
        return f"{count}{up.in_features} → {up.out_features} → {down.out_features}, {self.activation}, {formats}"


class Experts(_Held):
    """y = experts(x, ids, weights): x [tokens, d_model], ids and weights [tokens, k] from the model's own router."""

    def forward(self, x: Any, ids: Any, weights: Any) -> Any:
        return ff.moe(
            x, ids, weights.float(), self.w_up, self.w_down, self.w_gate, self.b_up, self.b_down, self.b_gate,
            activation=self.activation,
        )  # fmt: skip


class SubNormFFN(_Held):
    """BitNet's: down(RMSNorm(act(gate x) ⊙ up x)), in steps."""

    def __init__(self, activation: str, buffers: dict[str, Any], sub_norm_eps: float) -> None:
        super().__init__(activation, buffers)
        self.register_buffer("sub_norm", buffers["sub_norm"])
        self.sub_norm_eps = sub_norm_eps
        self.d_ff, self.d_out = ff.info(self.w_up).out_features, ff.info(self.w_down).out_features

    def forward(self, x: Any) -> Any:
        hidden = linear(x, self.w_up, self.b_up, out_features=self.d_ff)
        act = ACTIVATIONS[self.activation]
        if self.w_gate is None:
            hidden = act(hidden)
        else:
            hidden = act(linear(x, self.w_gate, self.b_gate, out_features=self.d_ff)) * hidden
        exact = hidden.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.sub_norm_eps) * self.sub_norm.float()
        return linear(exact.to(x.dtype), self.w_down, self.b_down, out_features=self.d_out)


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
KINDS: dict[str, type] = {"FFN": FFN, "Experts": Experts, "SubNormFFN": SubNormFFN, "ConvertedFFN": ConvertedFFN}
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
    return settings | {"sub_norm_eps": module.sub_norm_eps} if isinstance(module, SubNormFFN) else settings


def made_of(kind: str, settings: dict[str, Any], buffers: dict[str, Any]) -> nn.Module:
    """The module of a kind with these buffers. KeyError for what is missing."""
    if kind not in KINDS:
        raise KeyError(kind)
    if kind == "ConvertedFFN":
        return ConvertedFFN(settings, buffers)
    if kind == "FFN":
        parts = {name: buffers[name] for name in (*PACKED, *BIASES) if buffers.get(name) is not None}
        return FFN.from_packed(parts.pop("w_up"), parts.pop("w_down"), **parts, activation=settings["activation"])
    if kind == "SubNormFFN":
        return SubNormFFN(settings["activation"], buffers, settings["sub_norm_eps"])
    return Experts(settings["activation"], buffers)
