"""MoeLayer: a router, packed experts and what goes with them, in one object to call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import fastffn as ff


@dataclass(frozen=True)
class MoeLayer:
    """A mixture-of-experts layer: arrays and options for ``router_logits``, ``route_topk`` and ``moe``.

    Attributes:
        router: packed [experts, d_model], f32.
        w_up, w_gate, w_down: packed stacks, as :func:`fastffn.moe` takes them.
        k: experts per token.
        activation: as :func:`fastffn.moe`.
        routing: further options of :func:`fastffn.route_topk`, such as {"renormalize": True}.
        router_bias: [experts], added to the logits; None for none.
        b_up, b_gate, b_down: biases of the experts, as :func:`fastffn.moe`.
        shared: a :class:`fastffn.SharedExperts`; None for none.
        weights_on_input: as :func:`fastffn.moe`.
        family: the model family that it came from.
    """

    router: Any
    w_up: Any
    w_down: Any
    w_gate: Any
    k: int
    activation: str
    routing: dict[str, Any] = field(default_factory=dict)
    router_bias: Any = None
    b_up: Any = None
    b_gate: Any = None
    b_down: Any = None
    shared: ff.SharedExperts | None = None
    weights_on_input: bool = False
    family: str = ""

    @property
    def experts(self) -> int:
        """Experts to choose from."""
        return ff.info(self.router).out_features

    def logits(self, x: Any) -> Any:
        """[..., experts] f32 of x [..., d_model]."""
        return ff.router_logits(x, self.router, self.router_bias)

    def route(self, x: Any) -> tuple[Any, Any]:
        """ids [..., k] int32 and weights [..., k] f32 of x [..., d_model]."""
        route: tuple[Any, Any] = ff.route_topk(self.logits(x), self.k, **self.routing)
        return route

    def __call__(self, x: Any, *, load: Any = None, out: Any = None) -> Any:
        """y [..., d_model] of x [..., d_model]; load and out as :func:`fastffn.moe`."""
        ids, weights = self.route(x)
        return ff.moe(
            x,
            ids,
            weights,
            self.w_up,
            self.w_down,
            self.w_gate,
            self.b_up,
            self.b_down,
            self.b_gate,
            activation=self.activation,
            shared=self.shared,
            weights_on_input=self.weights_on_input,
            load=load,
            out=out,
        )
