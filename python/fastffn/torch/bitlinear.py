"""BitNet's layers as they are trained: latent weights in float, ternary in every forward pass, gradients straight through.

b1.58   :class:`BitLinear` with activations of 8 bits                                      arXiv:2402.17764
a4.8    :class:`BitFFN` with inputs of 4 bits and 8 before w_down                          arXiv:2411.04965
v2      :class:`HBitLinear`: an online Hadamard transform before the activations' 4 bits   arXiv:2504.18415

References: products here are dense and in float, so training gains no speed. What it gains is a layer that survives 2 bits:
quantising a trained float model afterwards destroys it. `export()` hands the codes to ``fastffn``, which computes what the
module computes in eval mode, in integers. python/examples/train_bitlinear.py does all of it on digits.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

import fastffn as ff
from fastffn.importers.ffn_layer import FfnLayer

from ._activations import activation_named
from ._bitquant import check_hadamard, hadamard, quantised_activations, quantised_weight, ternary


class BitLinear(nn.Module):
    """``nn.Linear`` whose weights are -1, 0 or 1 times a scale and whose input has 8 or 4 bits per token.

    y = Q(x) · Qw(weight)ᵀ + bias. `weight` and `bias` are latent: floats that an optimiser trains, and that `state_dict()`
    holds under the names of ``nn.Linear``.

    Args:
        in_features, out_features, bias, device, dtype: as of ``nn.Linear``.
        activation_bits: 8 (max |x| to 127) or 4 (mean |x| to √7).
        scale: "tensor", one scale for the matrix, or "row", one for each output.

    Attributes:
        quantised: while False the layer is an ``nn.Linear``: for a start in float.
    """

    weight: Any
    bias: Any

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        activation_bits: int = 8,
        scale: str = "tensor",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        for what, size in (("in_features", in_features), ("out_features", out_features)):
            if size < 1:
                raise ValueError(f"{name}: {what} is {size}, expected at least 1")
        if activation_bits not in (8, 4):
            raise ValueError(f"{name}: activation_bits is {activation_bits}, expected 8 or 4")
        if scale not in ("tensor", "row"):
            raise ValueError(f"{name}: scale is {scale!r}, expected 'tensor' or 'row'")
        self.in_features, self.out_features = in_features, out_features
        self.activation_bits, self.scale, self.quantised = activation_bits, scale, True
        bound = 1 / math.sqrt(in_features)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype).uniform_(-bound, bound))

        self.weight = uniform(out_features, in_features)
        if bias:
            self.bias = uniform(out_features)
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_linear(cls, linear: Any, **options: Any) -> Any:
        """With the parameters of an ``nn.Linear``: themselves, not copies, so an optimiser may hold them.

        `options`: the further ones of the class.
        """
        made = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta", **options)
        made.weight, made.bias = cls._latent(made, linear.weight), linear.bias
        return made

    @staticmethod
    def _latent(made: Any, weight: Any) -> Any:
        return weight

    def forward(self, x: Any) -> Any:
        """x [..., in_features] → [..., out_features]."""
        if not self.quantised:
            return nn.functional.linear(self._rotated(x), self.weight, self.bias)
        x = quantised_activations(self._rotated(x), self.activation_bits)
        return nn.functional.linear(x, quantised_weight(self.weight, self.scale == "row"), self.bias)

    def _rotated(self, x: Any) -> Any:
        return x

    def codes(self) -> tuple[Any, Any]:
        """The ternary weights, int8 [out_features, in_features], and their scales: f32 (1,), or (out_features, 1)."""
        codes, scale = ternary(self.weight, self.scale == "row")
        return codes.to(torch.int8), scale

    def export(self, **options: Any) -> Any:
        """Packed weights, a uint8 tensor: ``fastffn.linear(x, layer.export(), layer.bias)`` is what eval mode computes.

        The codes and scales are the module's own, so the two differ by the rounding of sums only.

        Args:
            options: further ones of :func:`fastffn.pack` for "ternary", such as order.
        """
        codes, scale = (part.cpu() for part in self.codes())
        act = {8: "int8", 4: "int4"}[self.activation_bits]
        return ff.pack(codes, "ternary", scale=scale.contiguous(), act=act, **self._pack_options(), **options)

    def _pack_options(self) -> dict[str, Any]:
        return {}

    def extra_repr(self) -> str:
        """Shapes, for print."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None},"
            f" activation_bits={self.activation_bits}, scale={self.scale}"
        )


class HBitLinear(BitLinear):
    """:class:`BitLinear` with a Hadamard transform of its input, which spreads outliers so that 4 bits hold the rest.

    y = Q(H · x) · Qw(weight)ᵀ + bias. `weight` lives in the rotated basis and is trained there; folding H into trained ternary
    weights afterwards does not work (arXiv:2504.18415).

    Args:
        hadamard: "pow2" (in_features a power of two), "kron" (K · 2^m of known K) or "block" (blocks of the largest power of two
            that divides in_features, or of `block`).
        block: of "block".
        activation_bits: 4 unless given.
        The others are those of :class:`BitLinear`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        hadamard: str = "block",
        block: int | None = None,
        activation_bits: int = 4,
        scale: str = "tensor",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        self.block = check_hadamard(hadamard, block, in_features, type(self).__name__)
        self.hadamard = hadamard
        super().__init__(
            in_features, out_features, bias, activation_bits=activation_bits, scale=scale, device=device, dtype=dtype
        )

    @staticmethod
    def _latent(made: Any, weight: Any) -> Any:
        """The weights in the rotated basis: w · Hᵀ, so that nothing changes but what is rounded."""
        with torch.no_grad():
            return nn.Parameter(hadamard(weight.detach(), made.hadamard, made.block))

    def _rotated(self, x: Any) -> Any:
        return hadamard(x, self.hadamard, self.block)

    def _pack_options(self) -> dict[str, Any]:
        return {"hadamard": self.hadamard, "block": self.block or None}

    def extra_repr(self) -> str:
        """Shapes, for print."""
        return f"{super().extra_repr()}, hadamard={self.hadamard}" + (f", block={self.block}" if self.block else "")


class BitFFN(nn.Module):
    """BitNet's gated feed-forward layer: gate and up, activation(gate) ⊙ up, RMSNorm over the hidden values, down.

    Args:
        d_model, d_ff: widths of x [..., d_model] and of the hidden values.
        activation: of the gate: "relu2" (b1.58 2B4T, a4.8), "silu" (v2) or another of ``fastffn.activations()``.
        bias: whether the three projections have biases.
        sub_norm: whether there is the RMSNorm before w_down; BitNet's layers have it.
        sub_norm_eps: its ε.
        activation_bits: of x, 8 or 4; down_bits: of w_down's input, the same unless given. a4.8 is (4, 8), v2 (4, 4).
        hadamard, block: of w_down's input, as of :class:`HBitLinear`; "none" for none. v2 has it.
        scale: as of :class:`BitLinear`.

    Attributes:
        gate_proj, up_proj, down_proj: :class:`BitLinear`, down_proj :class:`HBitLinear` with a transform.
        sub_norm: the norm's γ [d_ff], or None.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        *,
        activation: str = "relu2",
        bias: bool = False,
        sub_norm: bool = True,
        sub_norm_eps: float = 1e-5,
        activation_bits: int = 8,
        down_bits: int | None = None,
        hadamard: str = "none",
        block: int | None = None,
        scale: str = "tensor",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self._act = activation_named(activation, "BitFFN")
        self.d_model, self.d_ff, self.activation, self.sub_norm_eps = d_model, d_ff, activation, sub_norm_eps
        common: dict[str, Any] = {"scale": scale, "device": device, "dtype": dtype}
        self.gate_proj = BitLinear(d_model, d_ff, bias, activation_bits=activation_bits, **common)
        self.up_proj = BitLinear(d_model, d_ff, bias, activation_bits=activation_bits, **common)
        bits = activation_bits if down_bits is None else down_bits
        self.down_proj: BitLinear
        if hadamard == "none":
            self.down_proj = BitLinear(d_ff, d_model, bias, activation_bits=bits, **common)
        else:
            self.down_proj = HBitLinear(
                d_ff, d_model, bias, hadamard=hadamard, block=block, activation_bits=bits, **common
            )
        if sub_norm:
            self.sub_norm = nn.Parameter(torch.ones(d_ff, device=device, dtype=dtype))
        else:
            self.register_parameter("sub_norm", None)

    @property
    def quantised(self) -> bool:
        """Whether the projections are quantised; setting it sets all three."""
        return self.up_proj.quantised

    @quantised.setter
    def quantised(self, on: bool) -> None:
        for layer in (self.gate_proj, self.up_proj, self.down_proj):
            layer.quantised = on

    def forward(self, x: Any) -> Any:
        """x [..., d_model] → [..., d_model]."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.sub_norm is None:
            return self.down_proj(self._act(gate) * up)
        # relu² leaves the range of f16, and its square that of much else: f32 here, as in the library.
        wide = self._act(gate.float()) * up.float()
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.sub_norm_eps)
        return self.down_proj((wide * self.sub_norm).to(gate.dtype))

    def export(self, *, gate_first: bool = False) -> FfnLayer:
        """The layer packed, ready to be called: ``layer.export()(x)`` is what eval mode computes.

        Args:
            gate_first: arrange w_up by rows and w_down by columns, so that ``fastffn.ffn`` can skip, for one or two tokens,
                what belongs to gates that "relu" or "relu2" set to zero (a4.8). The results are the same.
        """
        rows, columns = ({"order": "rows"}, {"order": "columns"}) if gate_first else ({}, {})
        if self.down_proj._pack_options():  # transformed hidden values have no zeros to skip
            columns = {}

        def plain(tensor: Any) -> Any:
            return None if tensor is None else tensor.detach().cpu().float().contiguous()

        return FfnLayer(
            w_up=self.up_proj.export(**rows), w_down=self.down_proj.export(**columns), w_gate=self.gate_proj.export(),
            activation=self.activation, b_up=plain(self.up_proj.bias), b_down=plain(self.down_proj.bias),
            b_gate=plain(self.gate_proj.bias), sub_norm=plain(self.sub_norm), sub_norm_eps=self.sub_norm_eps,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Shapes, for print."""
        norm = "none" if self.sub_norm is None else f"{self.sub_norm_eps:g}"
        return f"d_model={self.d_model}, d_ff={self.d_ff}, activation={self.activation}, sub_norm_eps={norm}"


def to_bitlinear(module: Any, *, names: Any = None, **options: Any) -> Any:
    """Puts :class:`BitLinear` in place of every ``nn.Linear`` inside, keeping its parameters; returns the module.

    Args:
        module: changed in place.
        names: qualified names of those to replace, such as {"ffn.up", "ffn.down"}; all by default. Embeddings and heads are
            usually left in float.
        options: of the layers; with hadamard= they are :class:`HBitLinear`, whose weights are new parameters.

    Raises:
        ValueError: a name that is no ``nn.Linear`` of the module; options that do not fit.
    """
    found = {n: layer for n, layer in module.named_modules(remove_duplicate=False) if type(layer) is nn.Linear and n}
    kind = HBitLinear if options.get("hadamard", "none") != "none" else BitLinear
    if kind is BitLinear:
        options = {name: value for name, value in options.items() if name not in ("hadamard", "block")}
    made: dict[int, Any] = {}
    for name in list(found) if names is None else list(names):
        if name not in found:
            raise ValueError(
                f"to_bitlinear: {name!r} is no nn.Linear of the module, expected some of {', '.join(found)}"
            )
        parent, _, last = name.rpartition(".")
        linear = found[name]
        if id(linear) not in made:
            made[id(linear)] = kind.from_linear(linear, **options)
        setattr(module.get_submodule(parent), last, made[id(linear)])
    return module
