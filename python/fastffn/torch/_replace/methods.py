"""What can take a layer's place: its weights in a format, low-rank factors, or experts cut out of it.

A method is any object with ``build(weights, inputs)``: from :class:`DenseWeights` or :class:`ExpertWeights`, and rows of the
layer's inputs [rows, d_model] f32 (None where :func:`replace` got no calibration), to a module that computes y of x, or y of
(x, ids, weights) for experts. ``needs_inputs = True`` says that it cannot do without inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import fastffn as ff
from fastffn.torch._replace.converted import ConvertedFFN
from fastffn.torch._replace.modules import PACKED, VECTORS, made_of
from fastffn.torch._replace.weights import DenseWeights, ExpertWeights, Weights

_ROLES = ("w_gate", "w_up", "w_down")


@dataclass(frozen=True)
class PackFormat:
    """The layer's own weights in a format of :func:`fastffn.pack`: what a format's name or a dict of options stands for.

    Attributes:
        format: of all weights that ``each`` does not name.
        options: of :func:`fastffn.pack`. For "sparse24" also prune: "magnitude" (the default), "wanda" or "sparsegpt", how
            weights that are not 2:4 sparse yet become so.
        each: {"w_down": PackFormat("bf16"), …} for weights that have a format of their own.
    """

    format: str | None
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    each: dict[str, PackFormat] = field(default_factory=dict, hash=False)

    KEYS = ("format", *_ROLES)

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in ff.formats():
            raise ValueError(f"replace: format {self.format!r} is none of {', '.join(ff.formats())}")

    @staticmethod
    def of(rule: Mapping[str, Any]) -> PackFormat:
        """From a dict: {"format": …, options of pack, "w_down": a format or a dict of its own}."""
        rest = dict(rule)
        format = rest.pop("format", None)
        each: dict[str, PackFormat] = {}
        for role in _ROLES:
            if role in rest:
                value = rest.pop(role)
                each[role] = PackFormat.of(value) if isinstance(value, Mapping) else PackFormat(value)
        if format is None and (rest or len(each) < 2):
            raise ValueError(f"replace: the rule {dict(rule)!r} says no 'format' for all of the layer's weights")
        return PackFormat(format, rest, each)

    @property
    def needs_inputs(self) -> bool:
        """Whether a way of pruning was chosen that looks at inputs."""
        parts = [self, *self.each.values()]
        return any(part.options.get("prune") in ("wanda", "sparsegpt") for part in parts)

    def __str__(self) -> str:
        text = "" if self.format is None else self.format + "".join(f" {k}={v}" for k, v in self.options.items())
        return " ".join([*([text] if text else []), *(f"{role}: {part}" for role, part in self.each.items())])

    def build(self, weights: Weights, inputs: Any) -> nn.Module:
        """The module of these weights."""
        columns = _Columns(weights, inputs)
        packed = {role: self._pack(role, weights, columns) for role in PACKED if getattr(weights, role) is not None}
        return module_of(weights, packed)

    def _pack(self, role: str, weights: Weights, columns: _Columns) -> Any:
        chosen = self.each.get(role, self)
        if chosen.format is None:
            raise ValueError(f"replace: the rule {self} says no format for {role}, which the layer has")
        w, options = getattr(weights, role), dict(chosen.options)
        scale = weights.scales.get(role) if isinstance(weights, DenseWeights) else None
        if chosen.format == "sparse24":
            w = _pruned(w, options.pop("prune", None), columns, role)
        elif chosen.format == "ternary" and scale is not None and "scale" not in options:
            w, options["scale"] = w.sign(), torch.tensor([scale], dtype=torch.float32)
        return ff.pack(w, chosen.format, **options)


@dataclass(frozen=True)
class LowRank:
    """Each weight as two thin factors (:func:`fastffn.factorize`), packed with format "lowrank".

    Attributes:
        ratio, rank: as :func:`fastffn.factorize`: how small.
        method: "whitened" where :func:`replace` has calibration, else "svd", unless one is named.
        factors: format of the factors.
        keep: weights that stay whole, in bf16: for example ("w_down",).
    """

    ratio: float | None = None
    rank: int | None = None
    method: str | None = None
    factors: str = "bf16"
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.rank is None):
            raise ValueError("LowRank: give either ratio or rank")

    @property
    def needs_inputs(self) -> bool:
        """Whether the method looks at inputs."""
        return self.method in ("whitened", "diagonal", "awsvd")

    def __str__(self) -> str:
        size = f"ratio {self.ratio:g}" if self.ratio is not None else f"rank {self.rank}"
        return f"lowrank {size} {self.factors}"

    def build(self, weights: Weights, inputs: Any) -> nn.Module:
        """The module of the factors."""
        if not isinstance(weights, DenseWeights):
            raise ValueError("LowRank: experts are not factorised; give their layers another rule")
        columns = _Columns(weights, inputs)
        method = self.method or ("svd" if inputs is None else "whitened")
        packed = {}
        for role in PACKED:
            w = getattr(weights, role)
            if w is None:
                continue
            if role in self.keep:
                packed[role] = ff.pack(w, "bf16")
                continue
            calibration = None if method == "svd" else columns.of(role)
            pair = ff.factorize(w.float(), self.rank, self.ratio, method=method, calibration=calibration)
            packed[role] = ff.pack(pair, "lowrank", factors=self.factors)
        return module_of(weights, packed)


@dataclass(frozen=True)
class Moefication:
    """A dense layer cut into experts of similar neurons with a learned router (:func:`fastffn.convert.moefication`).

    Attributes:
        experts, picks: parts, and how many of them a token uses.
        format, options: of the experts.
        settings: further arguments of :func:`fastffn.convert.moefication`.
    """

    experts: int = 16
    picks: int = 4
    format: str = "bf16"
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    needs_inputs = True

    def __str__(self) -> str:
        return f"{self.picks} of {self.experts} experts {self.format}"

    def build(self, weights: Weights, inputs: Any) -> nn.Module:
        """The module of experts."""
        layer = ff.convert.moefication(
            inputs, **_dense_arguments("Moefication", weights), experts=self.experts, picks=self.picks, **self.settings
        )
        return ConvertedFFN.of(layer.pack(self.format, **self.options))


@dataclass(frozen=True)
class Cmoe:
    """A dense layer cut into shared and routed experts, without training (:func:`fastffn.convert.cmoe`).

    Attributes:
        experts, shared, picks: parts, how many of them every token uses, and how many more it picks.
        format, options: of the experts.
        settings: further arguments of :func:`fastffn.convert.cmoe`.
    """

    experts: int = 8
    shared: int = 3
    picks: int = 3
    format: str = "bf16"
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    needs_inputs = True

    def __str__(self) -> str:
        return f"{self.shared} + {self.picks} of {self.experts} experts {self.format}"

    def build(self, weights: Weights, inputs: Any) -> nn.Module:
        """The module of experts."""
        layer = ff.convert.cmoe(
            inputs, **_dense_arguments("Cmoe", weights),
            experts=self.experts, shared=self.shared, picks=self.picks, **self.settings,
        )  # fmt: skip
        return ConvertedFFN.of(layer.pack(self.format, **self.options))


def module_of(weights: Weights, packed: dict[str, Any]) -> nn.Module:
    """The module of packed weights, with the biases and norms that the layer has."""
    plain = {name: getattr(weights, name, None) for name in VECTORS}
    buffers = packed | {name: tensor.detach().clone() for name, tensor in plain.items() if tensor is not None}
    settings: dict[str, Any] = {"activation": weights.activation}
    if isinstance(weights, ExpertWeights):
        return made_of("Experts", settings, buffers)
    return made_of("FFN", settings | {"sub_norm_eps": weights.sub_norm_eps}, buffers)


class _Columns:
    """Inputs of each weight: the layer's for up and gate, the hidden activations for down."""

    def __init__(self, weights: Weights, inputs: Any) -> None:
        self._weights = weights
        self._inputs = inputs
        self._hidden: Any = None

    def of(self, role: str) -> Any:
        if self._inputs is None or not isinstance(self._weights, DenseWeights):
            return None
        if role != "w_down":
            return self._inputs
        if self._hidden is None:
            identity = torch.eye(self._weights.d_ff)
            bare = {**vars(self._weights), "w_down": identity, "b_down": None}
            self._hidden = DenseWeights(**bare).reference(self._inputs)
        return self._hidden


def _pruned(w: Any, method: str | None, columns: _Columns, role: str) -> Any:
    if method is None and _is_24(w):
        return w
    if method in ("wanda", "sparsegpt"):
        rows = columns.of(role)
        if rows is None:
            raise ValueError(f"replace: prune={method!r} of experts is not supported; use 'magnitude'")
        return ff.prune24(w, method, calibration=rows)
    return ff.prune24(w, method or "magnitude")


def _is_24(w: Any) -> bool:
    try:
        ff.check24(w)
    except ValueError:
        return False
    return True


def _dense_arguments(method: str, weights: Weights) -> dict[str, Any]:
    if not isinstance(weights, DenseWeights):
        raise ValueError(f"{method}: the layer is a mixture of experts already; give it another rule")
    if weights.sub_norm is not None:
        raise ValueError(f"{method}: the layer normalises its hidden activations, which experts do not have")
    names = ("w_up", "w_down", "w_gate", "b_up", "b_down", "b_gate")
    values = {name: getattr(weights, name) for name in names}
    return {name: None if value is None else value.float().numpy() for name, value in values.items()} | {
        "activation": weights.activation
    }
