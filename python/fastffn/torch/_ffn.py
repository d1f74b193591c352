"""The dense or gated feed-forward layer as an nn.Module."""

from __future__ import annotations

import math
from typing import Any

import torch

import fastffn as ff

from ._formats import PARTS, as_tensor, info, is_pair, pack_weight, parse_formats
from ._functions import cast, refuse_tangents, visible
from ._packed_module import PackedModule, absent_last

_VECTORS = ("b_up", "b_down", "b_gate", "sub_norm")


class FFN(PackedModule):
    """The feed-forward layer of a transformer on packed weights: ``fastffn.ffn`` as a module.

    y = activation(x · w_upᵀ + b_up) · w_downᵀ + b_down, or with a gate
    y = (activation(x · w_gateᵀ + b_gate) ⊙ (x · w_upᵀ + b_up)) · w_downᵀ + b_down.

    The weights are uint8 buffers, biases float buffers: `state_dict`, safetensors, deepcopy and pickle carry both, `to(dtype)`
    casts the biases, `to("cuda")` brings the weights into the order that GPUs read (and `cpu()` back, bit for bit), and
    `load_state_dict` takes weights of any format, after comparing their checksum. Gradients reach x.
    With ``trainable=True`` weights and biases are plain parameters instead, packed anew in every forward pass: y is what the
    format makes of them, and gradients pass its rounding straight through. ``packed()`` ends the training.

    Args:
        d_model, d_ff, d_out: widths of x, of the hidden activations, and of y (d_model unless given).
        activation: one of :func:`fastffn.activations`.
        gated: whether there is a gate.
        bias: whether there are biases.
        sub_norm, sub_norm_eps: whether the hidden row has an RMSNorm before w_down, as in BitNet; its scale is a buffer, and
            such a layer is not trainable (:class:`BitFFN` is).
        format: what :func:`fastffn.pack` takes: a name, a name with options ("ternary:scale=row"), a pair (name, options), or
            {"up": …, "down": …, "gate": …} of these.
        trainable: plain parameters, see above.
        device: where the weights are; "meta" makes a shell without memory, for ``load_state_dict(…, assign=True)``.
        dtype: of biases, and of the plain parameters.

    A new layer has random weights as ``nn.Linear`` has; see :meth:`from_weights`, :meth:`from_linear`, :meth:`from_packed`.
    """

    w_up: Any
    w_down: Any
    w_gate: Any
    b_up: Any
    b_down: Any
    b_gate: Any
    sub_norm: Any

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        d_out: int | None = None,
        *,
        activation: str,
        gated: bool = False,
        bias: bool = False,
        sub_norm: bool = False,
        sub_norm_eps: float = 1e-5,
        format: Any = "bf16",
        trainable: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        d_out = d_model if d_out is None else d_out
        for name, value in (("d_model", d_model), ("d_ff", d_ff), ("d_out", d_out)):
            if value < 1:
                raise ValueError(f"FFN: {name} is {value}, expected at least 1")
        shell = torch.device(device).type == "meta" if device is not None else False

        def uniform(bound: int, *shape: int) -> Any:
            made = torch.empty(shape, device=device, dtype=dtype)
            return made if shell else made.uniform_(-1 / math.sqrt(bound), 1 / math.sqrt(bound))

        weights = {"w_up": uniform(d_model, d_ff, d_model), "w_down": uniform(d_ff, d_out, d_ff)}
        weights["w_gate"] = uniform(d_model, d_ff, d_model) if gated else None
        biases: dict[str, Any] = dict.fromkeys(_VECTORS)
        if sub_norm:
            biases["sub_norm"] = torch.ones(d_ff, device=device, dtype=dtype)
        if bias:
            biases["b_up"], biases["b_down"] = uniform(d_model, d_ff), uniform(d_ff, d_out)
            biases["b_gate"] = uniform(d_model, d_ff) if gated else None
        self._build(
            (d_model, d_ff, d_out),
            weights,
            biases,
            activation,
            parse_formats(format, "FFN"),
            trainable,
            sub_norm_eps,
            shell,
        )

    def _build(
        self,
        widths: Any,
        weights: Any,
        biases: Any,
        activation: str,
        formats: Any,
        trainable: bool,
        sub_norm_eps: float,
        shell: bool = False,
    ) -> None:
        super().__init__()
        self.d_model, self.d_ff, self.d_out = widths
        if activation not in ff.activations():
            raise ValueError(f"FFN: activation is {activation!r}, expected one of {', '.join(ff.activations())}")
        self.activation, self.format, self.trainable = activation, formats, trainable
        self.sub_norm_eps = float(sub_norm_eps)
        if trainable and biases.get("sub_norm") is not None:
            raise ValueError("FFN: sub_norm is for packed weights, expected trainable=False; BitFFN trains such layers")
        for name, w in weights.items():
            if w is not None and not trainable and (is_pair(w) or as_tensor(w).dtype != torch.uint8):
                part = name.removeprefix("w_")
                w = torch.empty(0, dtype=torch.uint8, device="meta") if shell else pack_weight(w, formats[part])
            self._hold(name, w)
            if w is not None and not trainable:
                self._check_packed(name, name, w, verify=False)
        for name, b in biases.items():
            expected = (self.d_out if name == "b_down" else self.d_ff,)
            if b is not None and tuple(b.shape) != expected:
                raise ValueError(f"FFN: {name} has shape {tuple(b.shape)}, expected {expected}")
            self._hold(name, None if b is None else as_tensor(b).detach().clone())
        absent_last(self)

    def _expected(self) -> dict[str, tuple[int, ...]]:
        into, out = (self.d_ff, self.d_model), (self.d_out, self.d_ff)
        return {"w_up": into, "w_down": out, "w_gate": into}

    @classmethod
    def from_weights(
        cls,
        w_up: Any,
        w_down: Any,
        w_gate: Any = None,
        b_up: Any = None,
        b_down: Any = None,
        b_gate: Any = None,
        *,
        activation: str,
        format: Any = "bf16",
        trainable: bool = False,
        sub_norm: Any = None,
        sub_norm_eps: float = 1e-5,
    ) -> FFN:
        """A layer of plain weights, w_up and w_gate [d_ff, d_model], w_down [d_out, d_ff], as ``nn.Linear`` holds them.

        For the format "lowrank" a weight is a pair of factors (u, v), as :func:`fastffn.factorize` returns them; parts may
        differ. With ``trainable=True`` the parameters are copies of the weights.
        """
        formats = parse_formats(format, "FFN")
        if trainable and any(is_pair(w) for w in (w_up, w_down, w_gate) if w is not None):
            raise ValueError("FFN: pairs of factors are trained by LowRankFFN")
        shapes = {
            name: _shape(w) for name, w in (("w_up", w_up), ("w_down", w_down), ("w_gate", w_gate)) if w is not None
        }
        for name, shape in shapes.items():
            if len(shape) != 2:
                raise ValueError(f"FFN: {name} has shape {shape}, expected two dimensions")
        d_ff, d_model = shapes["w_up"]
        d_out = shapes["w_down"][0]
        for name, expected in (("w_down", (d_out, d_ff)), ("w_gate", (d_ff, d_model))):
            if shapes.get(name, expected) != expected:
                raise ValueError(
                    f"FFN: {name} has shape {shapes[name]}, expected {expected} from w_up {shapes['w_up']}"
                )
        weights = {"w_up": w_up, "w_down": w_down, "w_gate": w_gate}
        if trainable:
            weights = {name: None if w is None else as_tensor(w).detach().clone() for name, w in weights.items()}
        vectors = (b_up, b_down, b_gate, sub_norm)
        return cls._made((d_model, d_ff, d_out), weights, vectors, activation, formats, trainable, sub_norm_eps)

    @classmethod
    def from_linear(
        cls, up: Any, down: Any, gate: Any = None, *, activation: str, format: Any = "bf16", trainable: bool = False
    ) -> FFN:
        """A layer of ``nn.Linear`` modules, or of anything with `weight` and `bias`."""
        linears = (up, down, gate)
        weights = [None if linear is None else linear.weight for linear in linears]
        biases = [None if linear is None else getattr(linear, "bias", None) for linear in linears]
        return cls.from_weights(*weights, *biases, activation=activation, format=format, trainable=trainable)

    @classmethod
    def from_packed(
        cls,
        w_up: Any,
        w_down: Any,
        w_gate: Any = None,
        b_up: Any = None,
        b_down: Any = None,
        b_gate: Any = None,
        *,
        activation: str,
        sub_norm: Any = None,
        sub_norm_eps: float = 1e-5,
    ) -> FFN:
        """A layer of weights that :func:`fastffn.pack` packed; it holds these arrays themselves."""
        weights = {"w_up": w_up, "w_down": w_down, "w_gate": w_gate}
        weights = {name: None if w is None else as_tensor(w) for name, w in weights.items()}
        up, down = info(weights["w_up"]), info(weights["w_down"])
        formats = {
            part: parse_formats(info(weights[f"w_{part}"]).format, "FFN")[part]
            for part in ("up", "down", "gate")
            if weights[f"w_{part}"] is not None
        }
        widths = (up.in_features, up.out_features, down.out_features)
        return cls._made(widths, weights, (b_up, b_down, b_gate, sub_norm), activation, formats, False, sub_norm_eps)

    @classmethod
    def _made(
        cls, widths: Any, weights: Any, biases: Any, activation: str, formats: Any, trainable: bool, sub_norm_eps: float
    ) -> FFN:  # fmt: skip
        made: FFN = cls.__new__(cls)
        given = {name: None if b is None else as_tensor(b) for name, b in zip(_VECTORS, biases, strict=True)}
        made._build(widths, weights, given, activation, formats, trainable, sub_norm_eps)
        return made

    def packed(self) -> FFN:
        """An FFN of this one's weights, packed as they are now: for inference. Itself if it is packed already."""
        if not self.trainable:
            return self
        return FFN.from_weights(
            self.w_up, self.w_down, self.w_gate, self.b_up, self.b_down, self.b_gate,
            activation=self.activation, format=self.format,
        ).train(self.training)  # fmt: skip

    def forward(self, x: Any, *, segments: Any = None, out: Any = None) -> Any:
        """y [..., d_out] of x [..., d_model]; segments and out as :func:`fastffn.ffn`."""
        if self.trainable:
            if segments is not None or out is not None:
                raise ValueError("FFN: segments= and out= are for packed weights; call packed() first")
            return self._train(x)
        # Attributes of a module that are buffers take 0.5 µs each to find.
        held = self._buffers
        return visible("ffn")(
            x, *self.held_weights("w_up", "w_down", "w_gate"), held["b_up"], held["b_down"], held["b_gate"],
            activation=self.activation, segments=segments, sub_norm=held["sub_norm"], sub_norm_eps=self.sub_norm_eps,
            out_features=self.d_out, out=out,
        )  # fmt: skip

    def _train(self, x: Any) -> Any:
        weights = [[] if w is None else [w] for w in (self.w_up, self.w_down, self.w_gate)]
        formats = [str(self.format[part]) for part in PARTS]
        refuse_tangents("FFN", [x, *self.parameters()])
        return torch.ops.fastffn.ffn_plain(
            cast(x), *weights, self.b_up, self.b_down, self.b_gate, self.activation, formats
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Widths and formats, for print."""
        return (
            f"d_model={self.d_model}, d_ff={self.d_ff}, d_out={self.d_out}, activation={self.activation},"
            f" {'trainable, ' + str(self.format['up']) if self.trainable else self._formats()},"
            f" bias={self.b_up is not None or self.b_down is not None}"
        )


def _shape(w: Any) -> tuple[int, ...]:
    if not is_pair(w):
        return tuple(w.shape)
    u, v = w if isinstance(w, (tuple, list)) else (w.u, w.v)
    return (v.shape[0], u.shape[1]) if len(u.shape) == len(v.shape) == 2 else (*v.shape[:-1], u.shape[-1], -1)
