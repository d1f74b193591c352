"""How much memory a call takes beside its arguments."""

from __future__ import annotations

from typing import Any

from fastffn import _core


def linear_workspace(x: Any, w: Any, *, threads: int = 0) -> int:
    """Bytes of workspace that ``linear(x, w)`` uses; kept for later calls.

    Args:
        x, w: as :func:`fastffn.linear`; of x only the shape matters.
        threads: for this many threads; 0 for what a call would use now.
    """
    return _core.linear_workspace(x, w, threads)


def ffn_workspace(
    x: Any,
    w_up: Any,
    w_down: Any,
    w_gate: Any = None,
    *,
    sub_norm: Any = None,
    activation: str = "identity",
    gate_first: bool | str = "auto",
    threads: int = 0,
) -> int:
    """Bytes of workspace that ``ffn(x, w_up, w_down, w_gate)`` uses; kept for later calls.

    Args:
        x, w_up, w_down, w_gate, sub_norm: as :func:`fastffn.ffn`; of x only the shape matters.
        activation, gate_first: as :func:`fastffn.ffn`; they matter where w_up has order="rows".
        threads: for this many threads; 0 for what a call would use now.
    """
    return _core.ffn_workspace(x, w_up, w_down, w_gate, sub_norm, activation, gate_first, threads)
