"""The feed-forward layer with low-rank weights as an nn.Module."""

from __future__ import annotations

import math
from typing import Any

import torch

import fastffn as ff

from ._ffn import FFN
from ._formats import PARTS, Format, as_tensor
from ._functions import cast, refuse_tangents
from ._packed_module import PackedModule

_FACTORS = tuple(f"{part}_{factor}" for part in PARTS for factor in "uv")
_BIASES = ("b_up", "b_down", "b_gate")


class LowRankFFN(PackedModule):
    """A dense or gated FFN each of whose weights is a product of two thin factors, w = v @ u, as it is trained.

    u [rank, in] and v [out, rank] are the parameters up_u, up_v, down_u, down_v and, gated, gate_u, gate_v. The forward pass
    packs them and runs the library's streamed kernel; gradients pass the rounding of `factors` straight through. ``packed()``
    gives the :class:`FFN` for inference, whose buffers are the packed pairs.

    Args:
        d_model, d_ff, d_out: as :class:`FFN`.
        rank: of all weights, or {"up": …, "down": …, "gate": …}.
        activation, gated, bias, device, dtype: as :class:`FFN`.
        factors: how they are packed: "bf16", "f16", "f32" or "int8".
    """

    trainable = True

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        d_out: int | None = None,
        *,
        rank: Any,
        activation: str,
        gated: bool = False,
        bias: bool = False,
        factors: str = "bf16",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        d_out = d_model if d_out is None else d_out
        ranks: dict[str, int] = rank if isinstance(rank, dict) else dict.fromkeys(PARTS, rank)
        shapes = {"up": (d_ff, d_model), "down": (d_out, d_ff), "gate": (d_ff, d_model)}

        def uniform(bound: int, *shape: int) -> Any:
            made = torch.empty(shape, device=device, dtype=dtype)
            return made.uniform_(-1 / math.sqrt(bound), 1 / math.sqrt(bound))

        pairs: dict[str, Any] = {}
        for part in PARTS if gated else PARTS[:2]:
            out, into = shapes[part]
            r = ranks[part] if part in ranks else ranks["up"]
            if not 1 <= r <= min(out, into):
                raise ValueError(f"LowRankFFN: rank is {r}, expected 1 to {min(out, into)} for {part} {shapes[part]}")
            pairs[part] = (uniform(into, r, into), uniform(r, out, r))
        biases = {"b_up": uniform(d_model, d_ff), "b_down": uniform(d_ff, d_out)} if bias else {}
        if bias and gated:
            biases["b_gate"] = uniform(d_model, d_ff)
        self._build(pairs, biases, activation, factors)

    def _build(self, pairs: dict[str, Any], biases: dict[str, Any], activation: str, factors: str) -> None:
        super().__init__()
        if activation not in ff.activations():
            raise ValueError(f"LowRankFFN: activation is {activation!r}, expected one of {', '.join(ff.activations())}")
        if factors not in ("bf16", "f16", "f32", "int8"):
            raise ValueError(f"LowRankFFN: factors is {factors!r}, expected 'bf16', 'f16', 'f32' or 'int8'")
        self.activation, self.factors = activation, factors
        for part in PARTS:
            u, v = pairs.get(part, (None, None))
            if u is not None and (u.dim() != 2 or v.dim() != 2 or u.shape[0] != v.shape[1]):
                raise ValueError(
                    f"LowRankFFN: {part} has the factors u {tuple(u.shape)} and v {tuple(v.shape)}, expected [rank, in] and"
                    " [out, rank]"
                )
            self._hold(f"{part}_u", u)
            self._hold(f"{part}_v", v)
        self.d_ff, self.d_model = self.up_v.shape[0], self.up_u.shape[1]
        self.d_out = self.down_v.shape[0]
        for name in _BIASES:
            b = biases.get(name)
            self._hold(name, None if b is None else as_tensor(b).detach().clone())
        if self.down_u.shape[1] != self.d_ff or (self.gate_u is not None and self.gate_v.shape[0] != self.d_ff):
            raise ValueError(f"LowRankFFN: down and gate do not fit up, whose d_ff is {self.d_ff}")

    def _expected(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(getattr(self, name).shape) for name in _FACTORS if getattr(self, name) is not None}

    @classmethod
    def from_factors(
        cls, up: Any, down: Any, gate: Any = None, b_up: Any = None, b_down: Any = None, b_gate: Any = None, *,
        activation: str, factors: str = "bf16",
    ) -> LowRankFFN:  # fmt: skip
        """A layer of pairs (u, v), such as :class:`fastffn.Factors`; the parameters are copies, f32."""
        pairs = {}
        for part, pair in zip(PARTS, (up, down, gate), strict=True):
            if pair is not None:
                u, v = pair if isinstance(pair, (tuple, list)) else (pair.u, pair.v)
                pairs[part] = tuple(as_tensor(w).detach().float().clone() for w in (u, v))
        made = cls.__new__(cls)
        made._build(pairs, dict(zip(_BIASES, (b_up, b_down, b_gate), strict=True)), activation, factors)
        return made

    @classmethod
    def from_dense(
        cls, up: Any, down: Any, gate: Any = None, *, activation: str, factors: str = "bf16", **factorize: Any
    ) -> LowRankFFN:
        """A layer of ``nn.Linear`` modules, each factorised by :func:`fastffn.factorize`.

        Args:
            up, down, gate: ``nn.Linear``, or anything with `weight` and `bias`.
            factorize: of :func:`fastffn.factorize`: rank or ratio, method, and calibration {"up": x, "down": h} for the
                methods that take one (gate uses up's).
        """
        calibration = factorize.pop("calibration", None) or {}
        pairs, biases = {}, []
        for part, linear in zip(PARTS, (up, down, gate), strict=True):
            biases.append(None if linear is None else getattr(linear, "bias", None))
            if linear is None:
                continue
            options = dict(factorize)
            rows = calibration.get("down" if part == "down" else "up")
            if rows is not None:
                options["calibration"] = as_tensor(rows).detach().float().numpy()
            pairs[part] = ff.factorize(linear.weight.detach().float().numpy(), **options)
        return cls.from_factors(
            pairs["up"], pairs["down"], pairs.get("gate"), *biases, activation=activation, factors=factors
        )  # fmt: skip

    def packed(self) -> FFN:
        """The FFN of these factors, packed as they are now: for inference."""
        up, down, gate = ((getattr(self, f"{p}_u"), getattr(self, f"{p}_v")) if self._has(p) else None for p in PARTS)
        return FFN.from_weights(
            up, down, gate, self.b_up, self.b_down, self.b_gate, activation=self.activation,
            format=Format("lowrank", {"factors": self.factors}),
        ).train(self.training)  # fmt: skip

    def _has(self, part: str) -> bool:
        return getattr(self, f"{part}_u") is not None

    def forward(self, x: Any) -> Any:
        """y [..., d_out] of x [..., d_model]."""
        pairs = [[getattr(self, f"{p}_u"), getattr(self, f"{p}_v")] if self._has(p) else [] for p in PARTS]
        formats = [str(Format("lowrank", {"factors": self.factors}))] * 3
        refuse_tangents("LowRankFFN", [x, *self.parameters()])
        return torch.ops.fastffn.ffn_plain(
            cast(x), *pairs, self.b_up, self.b_down, self.b_gate, self.activation, formats
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Widths and ranks, for print."""
        ranks = ", ".join(f"{p}={getattr(self, f'{p}_u').shape[0]}" for p in PARTS if self._has(p))
        return (
            f"d_model={self.d_model}, d_ff={self.d_ff}, d_out={self.d_out}, activation={self.activation}, ranks: {ranks},"
            f" factors={self.factors}, bias={self.b_up is not None or self.b_down is not None}"
        )
