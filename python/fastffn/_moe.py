"""Parts of :func:`fastffn.moe`: shared and special experts, and the query for its workspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastffn import _core


@dataclass(frozen=True)
class SharedExperts:
    """Experts that every token uses, beside those it was routed to.

    Several may be one wide expert (their d_ff concatenated), which is faster; a stack keeps a gate for each.

    Attributes:
        w_up, w_gate: packed [d_ff, d_model], or a stack [count, d_ff, d_model]; their own format and d_ff.
        w_down: packed [d_model_out, d_ff] or [count, d_model_out, d_ff].
        b_up, b_gate, b_down: [d_ff] or [count, d_ff], [d_model_out] or [count, d_model_out]; None for none.
        sub_norm: γ of an RMSNorm of the hidden activations, [d_ff] or [count, d_ff]; None for none.
        gate: v, [d_model] or [count, d_model], f32, f16 or bf16: the expert counts σ(v · x) (Qwen2-MoE); None: 1.
    """

    w_up: Any
    w_down: Any
    w_gate: Any = None
    b_up: Any = None
    b_down: Any = None
    b_gate: Any = None
    gate: Any = None
    sub_norm: Any = None


@dataclass(frozen=True)
class SpecialExperts:
    """Experts without matrices (MoE++, Jin et al. 2024, arXiv:2410.07348): they cost next to nothing.

    Attributes:
        kinds: for each, "zero": 0; "copy": x; "constant": a0 · x + a1 · v with (a0, a1) = softmax(W_c · x).
        vectors: v of the constant ones, in their order: [constants, d_model], f32, f16 or bf16.
        mix: their W_c: [constants, 2, d_model].
    """

    kinds: tuple[str, ...]
    vectors: Any = None
    mix: Any = None


def moe_workspace(
    x: Any,
    ids: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    *,
    shared: Any = None,
    special: Any = None,
    weights_on_input: bool = False,
    sub_norm: Any = None,
    threads: int = 0,
) -> int:
    """Bytes of workspace that such a call of :func:`fastffn.moe` uses; kept for later calls.

    Args:
        x, ids: as :func:`fastffn.moe`; only their shapes matter, on a CUDA device the alignment of x too.
        w_up, w_down, w_gate, shared, special, weights_on_input, sub_norm: as :func:`fastffn.moe`.
        threads: for this many threads; 0 for what a call would use now.
    """
    if isinstance(w_up[0] if isinstance(w_up, list | tuple) and w_up else w_up, _core.DeviceWeight):
        if threads:
            raise ValueError(f"moe_workspace: threads is {threads}, and the weights are on a CUDA device; leave it out")
        return _core.device_workspace(
            _core.moe,
            x,
            ids,
            None,
            w_up,
            w_down,
            w_gate,
            activation="silu",
            shared=shared,
            special=special,
            weights_on_input=weights_on_input,
            sub_norm=sub_norm,
        )
    return _core.moe_workspace(
        threads,
        x,
        ids,
        None,
        w_up,
        w_down,
        w_gate,
        activation="silu",
        shared=shared,
        special=special,
        weights_on_input=weights_on_input,
        sub_norm=sub_norm,
    )
