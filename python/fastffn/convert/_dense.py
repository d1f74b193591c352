"""The dense layer to convert, as f32 NumPy, and what its hidden neurons do on calibration inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import fastffn as ff

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

_ROWS = 512  # calibration rows whose hidden activations are held at a time
_SIDE = 64  # an activation by way of ffn(): a small identity is exact in f32 and costs next to nothing


@dataclass(frozen=True)
class DenseLayer:
    """w_up, w_gate [d_ff, d_model], w_down [d_out, d_ff], biases [out_features]; f32, contiguous."""

    w_up: F32
    w_down: F32
    w_gate: F32 | None
    b_up: F32 | None
    b_down: F32 | None
    b_gate: F32 | None
    activation: str

    @property
    def d_model(self) -> int:
        return int(self.w_up.shape[1])

    @property
    def d_ff(self) -> int:
        return int(self.w_up.shape[0])

    def take(self, neurons: I64) -> DenseLayer:
        """The layer of some hidden neurons only, without the down bias."""
        gate = None if self.w_gate is None else self.w_gate[neurons]
        b_up = None if self.b_up is None else self.b_up[neurons]
        b_gate = None if self.b_gate is None else self.b_gate[neurons]
        down = np.ascontiguousarray(self.w_down[:, neurons])
        return DenseLayer(self.w_up[neurons], down, gate, b_up, None, b_gate, self.activation)


def dense_layer(
    operation: str,
    w_up: Any,
    w_down: Any,
    w_gate: Any,
    b_up: Any,
    b_down: Any,
    b_gate: Any,
    activation: str,
) -> DenseLayer:
    """Checks what a user gave and copies it to f32 NumPy. Raises ValueError or TypeError."""
    if activation not in ff.activations():
        raise ValueError(
            f"{operation}: activation {activation!r} is unknown; expected one of {', '.join(ff.activations())}"
        )
    up = _f32(operation, "w_up", w_up, (None, None))
    d_ff, d_model = up.shape
    gate = None if w_gate is None else _f32(operation, "w_gate", w_gate, (d_ff, d_model))
    down = _f32(operation, "w_down", w_down, (None, d_ff))
    if b_gate is not None and gate is None:
        raise ValueError(f"{operation}: b_gate without w_gate")
    return DenseLayer(
        w_up=up,
        w_down=down,
        w_gate=gate,
        b_up=None if b_up is None else _f32(operation, "b_up", b_up, (d_ff,)),
        b_down=None if b_down is None else _f32(operation, "b_down", b_down, (down.shape[0],)),
        b_gate=None if b_gate is None else _f32(operation, "b_gate", b_gate, (d_ff,)),
        activation=activation,
    )


def calibration_rows(operation: str, x: Any, layer: DenseLayer) -> F32:
    """Calibration inputs as f32 [rows, d_model]; raises ValueError where there are none."""
    rows = _f32(operation, "x", x, None)
    if rows.ndim < 1 or rows.shape[-1] != layer.d_model or rows.size == 0:
        raise ValueError(
            f"{operation}: x has shape {rows.shape}, expected [..., {layer.d_model}] with at least one row"
        )
    return rows.reshape(-1, layer.d_model)


def hidden_rows(layer: DenseLayer, x: F32) -> Iterator[F32]:
    """act(x w_upᵀ + b_up), or the gated product, [rows, d_ff], for some rows of x at a time."""
    up = ff.pack(layer.w_up, "f32")
    gate = None if layer.w_gate is None else ff.pack(layer.w_gate, "f32")
    for begin in range(0, x.shape[0], _ROWS):
        rows = x[begin : begin + _ROWS]
        hidden = ff.linear(rows, up, layer.b_up)
        yield activate(hidden, None if gate is None else ff.linear(rows, gate, layer.b_gate), layer.activation)


def activate(up: F32, gate: F32 | None, activation: str) -> F32:
    """The library's activation, elementwise: of up, or the gated product of both."""
    width = _SIDE if gate is None else 2 * _SIDE
    flat = np.zeros((-(-up.size // _SIDE), width), np.float32)
    for column, values in enumerate((up, gate)):
        if values is not None:
            part = np.zeros(len(flat) * _SIDE, np.float32)
            part[: values.size] = values.ravel()
            flat[:, column * _SIDE : (column + 1) * _SIDE] = part.reshape(-1, _SIDE)
    first, second = (ff.pack(np.eye(_SIDE, width, place, dtype=np.float32), "f32") for place in (0, width - _SIDE))
    down = ff.pack(np.eye(_SIDE, dtype=np.float32), "f32")
    y = ff.ffn(flat, first, down, None if gate is None else second, activation=activation)
    out: F32 = y.ravel()[: up.size].reshape(up.shape)
    return out


def normalized(rows: F32) -> F32:
    """Rows of unit length; a row of zeros stays one."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    out: F32 = (rows / np.where(length > 0, length, 1)).astype(np.float32)
    return out


def _f32(operation: str, name: str, value: Any, shape: tuple[int | None, ...] | None) -> F32:
    if hasattr(value, "detach"):  # torch: no gradients, and NumPy has no bf16
        value = value.detach().float().cpu().numpy()
    found = np.asarray(value)
    try:
        if np.iscomplexobj(found):
            raise TypeError
        array: F32 = found.astype(np.float32, order="C", copy=True)
    except (TypeError, ValueError):
        raise TypeError(
            f"{operation}: {name} cannot be read as an array of real numbers: its dtype is {found.dtype}"
        ) from None
    if shape is not None:
        fits = len(shape) == array.ndim and all(want in (None, have) for want, have in zip(shape, array.shape))
        if not fits or array.size == 0:
            wanted = ", ".join("any" if want is None else str(want) for want in shape)
            raise ValueError(f"{operation}: {name} has shape {array.shape}, expected ({wanted})")
    if not np.isfinite(array).all():
        raise ValueError(f"{operation}: {name} holds NaN or infinity")
    return array
