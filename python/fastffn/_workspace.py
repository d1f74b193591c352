"""How much memory a call takes beside its arguments."""

from __future__ import annotations

from typing import Any

from fastffn import _core


def device_workspace(operation: Any, /, *args: Any, **keywords: Any) -> int:
    """Bytes of workspace that ``operation(*args, **keywords)`` uses on a CUDA device: the least that ``workspace=`` may bring.

    The call makes its checks and its result but runs nothing. Arrays count as they are: one whose rows are not aligned may need
    more than another.

    Args:
        operation: a function of fastffn such as :func:`fastffn.ffn`; then its arguments.

    Raises:
        ValueError: no weight of the call is on a device; and what the call itself raises.
    """
    return _core.device_workspace(operation, *args, **keywords)


def _on_device(operation: str, threads: int) -> None:
    if threads:
        raise ValueError(f"{operation}: threads is {threads}, and the weights are on a CUDA device; leave it out")


def linear_workspace(x: Any, w: Any, *, threads: int = 0) -> int:
    """Bytes of workspace that ``linear(x, w)`` uses; kept for later calls.

    Args:
        x, w: as :func:`fastffn.linear`; of x only the shape matters, on a CUDA device its alignment too. (There ``workspace=`` takes
            so many bytes; without it calls take them from the device's stream-ordered pool.)
        threads: for this many threads; 0 for what a call would use now.
    """
    if isinstance(w, _core.DeviceWeight):
        _on_device("linear_workspace", threads)
        return _core.device_workspace(_core.linear, x, w)
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
        x, w_up, w_down, w_gate, sub_norm: as :func:`fastffn.ffn`; of x only the shape matters, on a CUDA device its alignment too.
        activation, gate_first: as :func:`fastffn.ffn`; they matter where w_up has order="rows".
        threads: for this many threads; 0 for what a call would use now.
    """
    if isinstance(w_up, _core.DeviceWeight):
        _on_device("ffn_workspace", threads)
        return _core.device_workspace(
            _core.ffn, x, w_up, w_down, w_gate, sub_norm=sub_norm, activation=activation, gate_first=gate_first
        )
    return _core.ffn_workspace(x, w_up, w_down, w_gate, sub_norm, activation, gate_first, threads)
