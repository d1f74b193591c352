"""A mixture of experts as an nn.Module."""

from __future__ import annotations

import math
from typing import Any

import torch

import fastffn as ff

from ._ffn import FFN
from ._formats import PARTS, as_tensor, info, pack_weight, parse_formats
from ._functions import cast, refuse_tangents, visible
from ._packed_module import PackedModule, absent_last

_WEIGHTS = ("w_up", "w_down", "w_gate")
_BIASES = ("b_up", "b_down", "b_gate")


class MoE(PackedModule):
    """A router and a stack of experts: ``fastffn.route_topk`` and ``fastffn.moe`` as a module.

    y = Σ over the k picks of weight · expert(x), plus shared(x) where there is a shared layer. The router's logits and
    scores are f32. Weights of experts are packed uint8 buffers, or plain parameters with ``trainable=True``: see
    :class:`FFN`, which is also what the shared layer is. Gradients reach x, and the router through the weights of its
    picks. Packed, the shared layer runs within the same call as the experts.

    Args:
        d_model, d_ff: widths of x (and y) and of an expert's hidden activations.
        experts, k: how many there are, and how many a token uses.
        activation: one of :func:`fastffn.activations`.
        gated, bias: whether experts have gates and biases.
        shared_d_ff: hidden width of a shared layer, which every token uses; 0 for none.
        shared_gate: whether the shared layer counts σ(v · x) (Qwen2-MoE) rather than 1.
        format: as :class:`FFN`.
        trainable, device, dtype: as :class:`FFN`.
        route: keywords of :func:`fastffn.route_topk`: score, renormalize, scale, groups, topk_groups, group_score, top_p.

    Attributes:
        router: [experts, d_model] f32, a parameter of a trainable module; router_bias: [experts], or None.
        correction_bias: [experts], or None: added to scores for choosing only (DeepSeek-V3).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        experts: int,
        k: int,
        activation: str,
        gated: bool = True,
        bias: bool = False,
        shared_d_ff: int = 0,
        shared_gate: bool = False,
        format: Any = "bf16",
        trainable: bool = False,
        device: Any = None,
        dtype: Any = None,
        **route: Any,
    ) -> None:
        for name, value in (("d_model", d_model), ("d_ff", d_ff), ("experts", experts), ("k", k)):
            if value < 1:
                raise ValueError(f"MoE: {name} is {value}, expected at least 1")
        shell = torch.device(device).type == "meta" if device is not None else False

        def uniform(bound: int, *shape: int, dtype: Any = dtype) -> Any:
            made = torch.empty(shape, device=device, dtype=dtype)
            return made if shell else made.uniform_(-1 / math.sqrt(bound), 1 / math.sqrt(bound))

        weights = {
            "w_up": uniform(d_model, experts, d_ff, d_model),
            "w_down": uniform(d_ff, experts, d_model, d_ff),
            "w_gate": uniform(d_model, experts, d_ff, d_model) if gated else None,
        }
        biases: dict[str, Any] = dict.fromkeys(_BIASES)
        if bias:
            biases = {"b_up": uniform(d_model, experts, d_ff), "b_down": uniform(d_ff, experts, d_model)}
            biases["b_gate"] = uniform(d_model, experts, d_ff) if gated else None
        shared, gate = None, None
        if shared_d_ff:
            shared = FFN(
                d_model, shared_d_ff, activation=activation, gated=gated, bias=bias, format=format, trainable=trainable,
                device=device, dtype=dtype,
            )  # fmt: skip
            gate = uniform(d_model, d_model, dtype=torch.float32) if shared_gate else None
        router = uniform(d_model, experts, d_model, dtype=torch.float32)
        self._build(
            (d_model, d_ff, experts, k), router, None, weights, biases, activation, parse_formats(format, "MoE"), trainable,
            shared, gate, route, shell,
        )  # fmt: skip

    def _build(
        self, sizes: Any, router: Any, router_bias: Any, weights: Any, biases: Any, activation: str, formats: Any,
        trainable: bool, shared: Any, shared_gate: Any, route: dict[str, Any], shell: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.d_model, self.d_ff, self.experts, self.k = sizes
        if self.k > self.experts:
            raise ValueError(f"MoE: k is {self.k}, expected at most {self.experts}, the number of experts")
        if activation not in ff.activations():
            raise ValueError(f"MoE: activation is {activation!r}, expected one of {', '.join(ff.activations())}")
        self.activation, self.format, self.trainable = activation, formats, trainable
        self.weights_on_input = bool(route.pop("weights_on_input", False))
        correction = route.pop("correction_bias", None)
        self.routing = route
        for name, w in weights.items():
            if w is not None and not trainable and as_tensor(w).dtype != torch.uint8:
                part = formats[name.removeprefix("w_")]
                w = torch.empty(0, dtype=torch.uint8, device="meta") if shell else pack_weight(w, part)
            self._hold(name, w)
            if w is not None and not trainable:
                self._check_packed(name, name, w, verify=False)
        for name, b in biases.items():
            expected = (self.experts, self.d_model if name == "b_down" else self.d_ff)
            if b is not None and tuple(b.shape) != expected:
                raise ValueError(f"MoE: {name} has shape {tuple(b.shape)}, expected {expected}")
            self._hold(name, None if b is None else as_tensor(b).detach().clone())
        for name, value, shape in (
            ("router", router, (self.experts, self.d_model)),
            ("router_bias", router_bias, (self.experts,)),
            ("shared_gate", shared_gate, (self.d_model,)),
        ):
            if value is not None and tuple(value.shape) != shape:
                raise ValueError(f"MoE: {name} has shape {tuple(value.shape)}, expected {shape}")
            self._hold(name, None if value is None else as_tensor(value).detach().float().clone())
        self.register_buffer("correction_bias", None if correction is None else as_tensor(correction).detach().float())
        absent_last(self)
        self.shared = shared

    def _expected(self) -> dict[str, tuple[int, ...]]:
        count = () if self.experts == 1 and not self.trainable else (self.experts,)
        into, out = (*count, self.d_ff, self.d_model), (*count, self.d_model, self.d_ff)
        return {"w_up": into, "w_down": out, "w_gate": into}

    @classmethod
    def from_weights(
        cls,
        router: Any,
        w_up: Any,
        w_down: Any,
        w_gate: Any = None,
        b_up: Any = None,
        b_down: Any = None,
        b_gate: Any = None,
        *,
        k: int,
        activation: str,
        format: Any = "bf16",
        router_bias: Any = None,
        shared: FFN | None = None,
        shared_gate: Any = None,
        trainable: bool = False,
        **route: Any,
    ) -> MoE:
        """A layer of plain weights, or of packed stacks (uint8).

        Args:
            router: [experts, d_model]; router_bias: [experts].
            w_up, w_gate: [experts, d_ff, d_model]; w_down: [experts, d_model, d_ff]; or packed stacks of these.
            b_up, b_gate, b_down: [experts, d_ff] and [experts, d_model]; None for none.
            shared: an :class:`FFN` that every token uses; shared_gate: [d_model], see :class:`MoE`.
            route: as :class:`MoE`, and correction_bias [experts], weights_on_input.
        """
        stacks: dict[str, Any] = dict(
            zip(_WEIGHTS, (None if w is None else as_tensor(w) for w in (w_up, w_down, w_gate)), strict=True)
        )
        packed = stacks["w_up"].dtype == torch.uint8
        if packed and trainable:
            raise ValueError("MoE: w_up is packed, expected plain weights with trainable=True")
        shape = tuple(stacks["w_up"].shape)
        if packed:
            found = info(stacks["w_up"])
            shape = (found.count, found.out_features, found.in_features)
        if len(shape) != 3:
            raise ValueError(f"MoE: w_up has shape {shape}, expected (experts, d_ff, d_model)")
        count, d_ff, d_model = shape
        for name, expected in (("w_down", (count, d_model, d_ff)), ("w_gate", shape)):
            w = stacks[name]
            if w is not None and w.dtype != torch.uint8 and tuple(w.shape) != expected:
                raise ValueError(f"MoE: {name} has shape {tuple(w.shape)}, expected {expected} from w_up {shape}")
        if shared is not None and shared.trainable != trainable:
            raise ValueError(f"MoE: shared has trainable={shared.trainable}, expected {trainable} as the experts")
        if trainable:
            stacks = {name: None if w is None else w.detach().clone() for name, w in stacks.items()}
        if shared is not None and shared.activation != activation:
            raise ValueError(
                f"MoE: shared has activation {shared.activation!r}, expected {activation!r} as the experts"
            )
        if shared is not None and shared.sub_norm is not None:
            raise ValueError("MoE: shared has a sub_norm, which this module does not run; call it beside the experts")
        formats = parse_formats(info(stacks["w_up"]).format if packed else format, "MoE")
        biases = {n: None if b is None else as_tensor(b) for n, b in zip(_BIASES, (b_up, b_down, b_gate), strict=True)}
        made = cls.__new__(cls)
        made._build(
            (d_model, d_ff, count, k), as_tensor(router), None if router_bias is None else as_tensor(router_bias), stacks,
            biases, activation, formats, trainable, shared, None if shared_gate is None else as_tensor(shared_gate), route,
        )  # fmt: skip
        return made

    @classmethod
    def from_layer(cls, layer: Any) -> MoE:
        """The module of a :class:`fastffn.importers.MoeLayer`, as :func:`fastffn.importers.load_moe` returns them."""
        shared, gate = None, None
        if layer.shared is not None:
            s = layer.shared
            shared = FFN.from_packed(
                s.w_up, s.w_down, s.w_gate, s.b_up, s.b_down, s.b_gate, activation=layer.activation
            )  # fmt: skip
            gate = None if s.gate is None else as_tensor(s.gate).reshape(-1)
        return cls.from_weights(
            as_tensor(ff.unpack(layer.router)), layer.w_up, layer.w_down, layer.w_gate, layer.b_up, layer.b_down,
            layer.b_gate, k=layer.k, activation=layer.activation, router_bias=layer.router_bias, shared=shared,
            shared_gate=gate, weights_on_input=layer.weights_on_input, **layer.routing,
        )  # fmt: skip

    def packed(self) -> MoE:
        """A MoE of this one's weights, packed as they are now: for inference. Itself if it is packed already."""
        if not self.trainable:
            return self
        made = MoE.from_weights(
            self.router, self.w_up, self.w_down, self.w_gate, self.b_up, self.b_down, self.b_gate, k=self.k,
            activation=self.activation, format=self.format, router_bias=self.router_bias,
            shared=None if self.shared is None else self.shared.packed(), shared_gate=self.shared_gate,
            weights_on_input=self.weights_on_input, correction_bias=self.correction_bias, **self.routing,
        )  # fmt: skip
        return made.train(self.training)

    def logits(self, x: Any) -> Any:
        """The router's logits, [..., experts] f32, whatever x's dtype and autocast say."""
        with torch.autocast(x.device.type, enabled=False):
            logits = torch.nn.functional.linear(x.float(), self.router.float())
            return logits if self.router_bias is None else logits + self.router_bias.float()

    def route(self, x: Any) -> tuple[Any, Any]:
        """(ids [..., k] int32, weights [..., k] f32) of x [..., d_model]."""
        bias = None if self.correction_bias is None else self.correction_bias.float()
        picks: tuple[Any, Any] = visible("route_topk")(self.logits(x), self.k, correction_bias=bias, **self.routing)
        return picks

    def forward(self, x: Any) -> Any:
        """y [..., d_model] of x [..., d_model]."""
        ids, weights = self.route(x)
        if self.trainable:
            return self._train(x, ids, weights)
        shared = None
        if self.shared is not None:
            s = self.shared
            up, down, gate = s.held_weights(*_WEIGHTS)
            shared = ff.SharedExperts(up, down, gate, s.b_up, s.b_down, s.b_gate, self.shared_gate)
        return visible("moe")(
            x, ids, weights, *self.held_weights(*_WEIGHTS), self.b_up, self.b_down, self.b_gate,
            activation=self.activation, shared=shared, weights_on_input=self.weights_on_input, out_features=self.d_model,
        )  # fmt: skip

    def _train(self, x: Any, ids: Any, weights: Any) -> Any:
        x = cast(x)
        refuse_tangents("MoE", [x, weights, *self.parameters()])
        stacks = [[] if w is None else [w] for w in (self.w_up, self.w_down, self.w_gate)]
        y = torch.ops.fastffn.moe_plain(
            x, ids, weights, *stacks, self.b_up, self.b_down, self.b_gate, self.activation,
            [str(self.format[part]) for part in PARTS], self.weights_on_input,
        )  # fmt: skip
        if self.shared is None:
            return y
        added = self.shared(x)
        if self.shared_gate is not None:
            added = added * torch.sigmoid((x.float() * self.shared_gate).sum(-1, keepdim=True)).to(added.dtype)
        return y + added

    def extra_repr(self) -> str:
        """Widths, experts and formats, for print."""
        formats = f"trainable, {self.format['up']}" if self.trainable else self._formats()
        routing = "".join(f", {name}={value}" for name, value in self.routing.items())
        return (
            f"d_model={self.d_model}, d_ff={self.d_ff}, experts={self.experts}, k={self.k}, activation={self.activation},"
            f" {formats}{routing}"
        )
