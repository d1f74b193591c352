"""A converted layer, packed: stacks for fastffn.moe, and the routers on fastffn.linear, fastffn.ffn and route_topk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import fastffn as ff

from ._layer import AnalyticRouter, LearnedRouter, MoeLayer

F32 = npt.NDArray[np.float32]
Packed = Any  # uint8 arrays, as fastffn.pack makes them


@dataclass(frozen=True)
class PackedLearnedRouter:
    """`LearnedRouter`, packed in f32."""

    w_in: Packed
    w_out: Packed

    def route(self, x: Any, picks: int) -> tuple[Any, None]:
        """ids [..., picks]; every pick counts fully."""
        x = _f32(x)
        length = (x * x).sum(-1)[..., None] ** 0.5
        hidden = ff.linear(x, self.w_in) / (length + (length == 0))
        hidden = hidden.tanh() if hasattr(hidden, "tanh") else np.tanh(hidden)
        # The score that compares logits themselves: softmax could round two of them to the same.
        return ff.route_topk(ff.linear(hidden, self.w_out), picks, score="topk_softmax")[0], None

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrices."""
        return int(self.w_in.nbytes + self.w_out.nbytes)


@dataclass(frozen=True)
class PackedAnalyticRouter:
    """`AnalyticRouter`, packed in f32. `w_down` is the identity: the logits are hidden activations."""

    w_up: Packed
    w_down: Packed
    w_gate: Packed
    b_up: F32 | None
    b_gate: F32 | None
    activation: str
    balance: F32 | None
    scale: float

    def route(self, x: Any, picks: int) -> tuple[Any, Any]:
        """ids [..., picks], and weights or None where all are 1."""
        hidden = ff.ffn(
            _f32(x), self.w_up, self.w_down, self.w_gate, self.b_up, None, self.b_gate, activation=self.activation
        )
        ids, weights = ff.route_topk(abs(hidden), picks, score="softmax", correction_bias=self.balance)
        return ids, None if self.scale == 0 else weights * self.scale + 1

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrices."""
        return int(self.w_up.nbytes + self.w_down.nbytes + (0 if self.w_gate is None else self.w_gate.nbytes))


@dataclass(frozen=True)
class PackedMoe:
    """A converted layer, ready to run: ``y = layer(x)``, with x as :func:`fastffn.ffn` takes it.

    Attributes:
        w_up, w_down, w_gate: packed stacks of the routed experts.
        b_up, b_gate: [experts, width] or None.
        shared: what every token uses, or None; the down bias is added there.
        activation: the layer's.
        picks: experts per token.
        router: its ``route(x, picks)`` gives ids and weights for :func:`fastffn.moe`.
    """

    w_up: Packed
    w_down: Packed
    w_gate: Packed
    b_up: F32 | None
    b_gate: F32 | None
    shared: Any
    activation: str
    picks: int
    router: PackedLearnedRouter | PackedAnalyticRouter

    def __call__(self, x: Any, *, out: Any = None) -> Any:
        """y [..., d_model_out], in ``out`` where given."""
        ids, weights = self.router.route(x, self.picks)
        return ff.moe(
            x, ids, weights, self.w_up, self.w_down, self.w_gate, self.b_up, None, self.b_gate,
            activation=self.activation, shared=self.shared, out=out,
        )  # fmt: skip

    @property
    def nbytes(self) -> int:
        """Bytes of all packed weights, the router's included."""
        stacks = [self.w_up, self.w_down, self.w_gate]
        if self.shared is not None:
            stacks += [self.shared.w_up, self.shared.w_down, self.shared.w_gate]
        return sum(int(stack.nbytes) for stack in stacks if stack is not None) + self.router.nbytes


def pack_moe(layer: MoeLayer, format: str, picks: int, options: dict[str, Any]) -> PackedMoe:
    """`MoeLayer.pack` on checked arguments."""
    parts = [layer.dense.take(neurons) for neurons in layer.experts]

    def stack(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else np.stack(values)

    def packed(weights: F32 | None) -> Any:
        return None if weights is None else ff.pack(weights, format, **options)

    shared = None
    if layer.shared.size:
        both = layer.dense.take(layer.shared)
        shared = ff.SharedExperts(
            packed(both.w_up), packed(both.w_down), packed(both.w_gate), both.b_up, layer.dense.b_down, both.b_gate
        )
    elif layer.dense.b_down is not None:
        # The bias is the layer's, not an expert's. One neuron of zeros adds it once, whatever the picks.
        up, down = np.zeros((1, layer.dense.d_model)), np.zeros((layer.dense.w_down.shape[0], 1))
        gate = None if layer.dense.w_gate is None else ff.pack(up, "f32")
        shared = ff.SharedExperts(ff.pack(up, "f32"), ff.pack(down, "f32"), gate, None, layer.dense.b_down, None)
    return PackedMoe(
        packed(stack("w_up")), packed(stack("w_down")), packed(stack("w_gate")), stack("b_up"), stack("b_gate"),
        shared, layer.dense.activation, picks, _packed_router(layer.router),
    )  # fmt: skip


def _packed_router(router: LearnedRouter | AnalyticRouter) -> PackedLearnedRouter | PackedAnalyticRouter:
    """f32 whatever the experts' format: a router is small, and its ties and order matter."""
    if isinstance(router, LearnedRouter):
        return PackedLearnedRouter(ff.pack(router.w_in, "f32"), ff.pack(router.w_out, "f32"))
    return PackedAnalyticRouter(
        w_up=ff.pack(router.w_up, "f32"),
        w_down=ff.pack(np.eye(len(router.w_up), dtype=np.float32), "f32"),
        w_gate=None if router.w_gate is None else ff.pack(router.w_gate, "f32"),
        b_up=router.b_up,
        b_gate=router.b_gate,
        activation=router.activation,
        balance=router.balance if router.balance.any() else None,
        scale=router.scale,
    )


def _f32(x: Any) -> Any:
    if str(x.dtype).endswith("float32"):
        return x
    return x.float() if hasattr(x, "float") else x.astype("float32")
