"""FfnLayer: the packed weights of one feed-forward layer and what goes with them, in one object to call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import fastffn as ff


@dataclass(frozen=True, eq=False)
class FfnLayer:
    """A dense feed-forward layer: the arguments of :func:`fastffn.ffn`.

    Attributes:
        w_up, w_down, w_gate: packed; w_gate None for a layer without gate.
        activation: as :func:`fastffn.ffn`.
        b_up, b_down, b_gate: biases; None for none.
        sub_norm: [d_ff] f32, γ of the RMSNorm between the hidden activations and w_down (BitNet); None for none.
        sub_norm_eps: its ε.
    """

    w_up: Any
    w_down: Any
    w_gate: Any = None
    activation: str = "silu"
    b_up: Any = None
    b_down: Any = None
    b_gate: Any = None
    sub_norm: Any = None
    sub_norm_eps: float = 1e-5

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights."""
        return sum(ff.info(w).nbytes for w in (self.w_gate, self.w_up, self.w_down) if w is not None)

    def __call__(self, x: Any, *, out: Any = None) -> Any:
        """y [..., d_model] of x [..., d_model]; out as :func:`fastffn.ffn`."""
        norm = {} if self.sub_norm is None else {"sub_norm": self.sub_norm, "sub_norm_eps": self.sub_norm_eps}
        return ff.ffn(
            x, self.w_up, self.w_down, self.w_gate, self.b_up, self.b_down, self.b_gate,
            activation=self.activation, out=out, **norm,
        )  # fmt: skip
