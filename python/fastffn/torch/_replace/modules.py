"""The modules that take the places of feed-forward layers: packed weights as buffers, and what surrounds them in a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fastffn as ff
from fastffn.torch._activations import ACTIVATIONS
from fastffn.torch._replace.converted import ConvertedFFN

# Buffers that hold packed weights, and those that hold plain numbers.
PACKED = ("w_up", "w_down", "w_gate")
PLAIN = ("b_up", "b_down", "b_gate", "sub_norm")


class _Packed(nn.Module):
    """Packed weights and biases as buffers, for inference: under gradients, see :func:`fastffn.torch.replace`."""

    def __init__(self, activation: str, buffers: dict[str, Any]) -> None:
        super().__init__()
        self.activation = activation
        for name in (*PACKED, *PLAIN):
            self.register_buffer(name, buffers.get(name))

    def extra_repr(self) -> str:
        if self.w_up.is_meta:
            return "not loaded"
        up, down = ff.info(self.w_up), ff.info(self.w_down)
        names = [up.format, ff.info(self.w_gate).format] if self.w_gate is not None else [up.format]
        formats = "/".join(dict.fromkeys([*names, down.format]))
        count = f"{up.count} experts, " if up.count > 1 else ""
        return f"{count}{up.in_features} → {up.out_features} → {down.out_features}, {self.activation}, {formats}"


class PackedFFN(_Packed):
    """y = ffn(x), x [..., d_model]."""

    def __init__(self, activation: str, buffers: dict[str, Any], sub_norm_eps: float = 1e-5) -> None:
        super().__init__(activation, buffers)
        self.sub_norm_eps = sub_norm_eps

    def forward(self, x: Any) -> Any:
        if self.sub_norm is None:
            return ff.ffn(
                x, self.w_up, self.w_down, self.w_gate, self.b_up, self.b_down, self.b_gate, activation=self.activation
            )
        return self._with_norm(x)

    def _with_norm(self, x: Any) -> Any:
        """BitNet's: RMSNorm(act(gate) ⊙ up) before down, in steps."""
        up = ff.linear(x, self.w_up, self.b_up)
        act = ACTIVATIONS[self.activation]
        hidden = act(up) if self.w_gate is None else act(ff.linear(x, self.w_gate, self.b_gate)) * up
        exact = hidden.float()
        exact = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.sub_norm_eps) * self.sub_norm.float()
        return ff.linear(exact.to(x.dtype), self.w_down, self.b_down)


class PackedExperts(_Packed):
    """y = experts(x, ids, weights): x [tokens, d_model], ids and weights [tokens, k] from the model's own router."""

    def forward(self, x: Any, ids: Any, weights: Any) -> Any:
        return ff.moe(
            x, ids, weights.float(), self.w_up, self.w_down, self.w_gate, self.b_up, self.b_down, self.b_gate,
            activation=self.activation,
        )  # fmt: skip


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


# Kinds of modules that a file can name, and where their other settings are.
KINDS: dict[str, type] = {"PackedFFN": PackedFFN, "PackedExperts": PackedExperts, "ConvertedFFN": ConvertedFFN}
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
    settings = {"activation": module.activation}
    return settings | {"sub_norm_eps": module.sub_norm_eps} if isinstance(module, PackedFFN) else settings


def rebuilt(kind: str, settings: dict[str, Any], buffers: dict[str, Any]) -> nn.Module:
    """The module of a kind with these buffers. KeyError for what is missing."""
    if kind not in KINDS:
        raise KeyError(kind)
    if kind == "ConvertedFFN":
        return ConvertedFFN(settings, buffers)
    if "w_up" not in buffers or "w_down" not in buffers:
        raise KeyError("w_up or w_down")
    if kind == "PackedFFN":
        return PackedFFN(settings["activation"], buffers, settings["sub_norm_eps"])
    return PackedExperts(settings["activation"], buffers)
