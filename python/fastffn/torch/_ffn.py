"""The dense or gated feed-forward layer as an nn.Module."""

from __future__ import annotations

import math
from typing import Any

import torch

import fastffn as ff

from ._formats import as_tensor, is_pair, pack_weight, parse_formats
from ._functions import ffn
from ._packed_module import PackedModule

_BIASES = ("b_up", "b_down", "b_gate")


class FFN(PackedModule):
    """The feed-forward layer of a transformer on packed weights: ``fastffn.ffn`` as a module.

    y = activation(x · w_upᵀ + b_up) · w_downᵀ + b_down, or with a gate
    y = (activation(x · w_gateᵀ + b_gate) ⊙ (x · w_upᵀ + b_up)) · w_downᵀ + b_down.

    The weights are uint8 buffers, biases float buffers: `state_dict`, safetensors, deepcopy and pickle carry both, `to(dtype)`
    casts the biases, and `load_state_dict` takes weights of any format, after comparing their checksum. Gradients reach x.
    With ``trainable=True`` weights and biases are plain parameters instead, packed anew in every forward pass: y is what the
    format makes of them, and gradients pass its rounding straight through. ``packed()`` ends the training.

    Args:
        d_model, d_ff, d_out: widths of x, of the hidden activations, and of y (d_model unless given).
        activation: one of :func:`fastffn.activations`.
        gated: whether there is a gate.
        bias: whether there are biases.
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

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        d_out: int | None = None,
        *,
        activation: str,
        gated: bool = False,
        bias: bool = False,
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
        biases: dict[str, Any] = dict.fromkeys(_BIASES)
        if bias:
            biases["b_up"], biases["b_down"] = uniform(d_model, d_ff), uniform(d_ff, d_out)
            biases["b_gate"] = uniform(d_model, d_ff) if gated else None
        self._build((d_model, d_ff, d_out), weights, biases, activation, parse_formats(format, "FFN"), trainable, shell)

    def _build(
        self,
        widths: Any,
        weights: Any,
        biases: Any,
        activation: str,
        formats: Any,
        trainable: bool,
        shell: bool = False,
    ) -> None:
        super().__init__()
        self.d_model, self.d_ff, self.d_out = widths
        if activation not in ff.activations():
            raise ValueError(f"FFN: activation is {activation!r}, expected one of {', '.join(ff.activations())}")
        self.activation, self.format, self.trainable = activation, formats, trainable
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
        return cls._made((d_model, d_ff, d_out), weights, (b_up, b_down, b_gate), activation, formats, trainable)

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
    ) -> FFN:
        """A layer of weights that :func:`fastffn.pack` packed; it holds these arrays themselves."""
        up, down = ff.info(w_up), ff.info(w_down)
        weights = {"w_up": w_up, "w_down": w_down, "w_gate": w_gate}
        weights = {name: None if w is None else as_tensor(w) for name, w in weights.items()}
        formats = {
            part: parse_formats(ff.info(weights[f"w_{part}"]).format, "FFN")[part]
            for part in ("up", "down", "gate")
            if weights[f"w_{part}"] is not None
        }
        widths = (up.in_features, up.out_features, down.out_features)
        return cls._made(widths, weights, (b_up, b_down, b_gate), activation, formats, False)

    @classmethod
    def _made(
        cls, widths: Any, weights: Any, biases: Any, activation: str, formats: Any, trainable: bool
    ) -> FFN:  # fmt: skip
        made: FFN = cls.__new__(cls)
        given = {name: None if b is None else as_tensor(b) for name, b in zip(_BIASES, biases, strict=True)}
        made._build(widths, weights, given, activation, formats, trainable)
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
        return ffn(
            x, self.w_up, self.w_down, self.w_gate, self.b_up, self.b_down, self.b_gate,
            activation=self.activation, segments=segments, out_features=self.d_out, out=out,
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
