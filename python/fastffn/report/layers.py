"""What the model runners share: one feed-forward layer's weights, its NumPy reference, and how another one plugs in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .arrays import F32, F64, AnyArray


@dataclass(frozen=True)
class FfnLayer:
    """One layer as torch.nn.Linear holds it: w_up, w_gate (d_ff, d_model), w_down (d_model, d_ff), biases 1-D; f32."""

    w_up: F32
    w_down: F32
    w_gate: F32 | None = None
    b_up: F32 | None = None
    b_down: F32 | None = None
    b_gate: F32 | None = None
    activation: str = "silu"
    index: int | None = None  # its place in the model, for methods that converted all layers beforehand

    @property
    def d_model(self) -> int:
        """Width of the layer's input."""
        return int(self.w_up.shape[1])

    @property
    def d_ff(self) -> int:
        """Width of the hidden activations."""
        return int(self.w_up.shape[0])

    @property
    def parameters(self) -> int:
        """Weights, without biases."""
        return self.w_up.size + self.w_down.size + (0 if self.w_gate is None else self.w_gate.size)

    @property
    def flops_per_token(self) -> int:
        """Multiplications and additions of the matrix products."""
        return 2 * self.parameters


# (layer's index, its weights, x [..., d_model] f32) → y [..., d_model] f32.
FfnFunction = Callable[[int, FfnLayer, F32], F32]


class Weights(Protocol):
    """A model file: both readers offer this."""

    def f32(self, name: str) -> F32:
        """The tensor as f32."""

    def first_f32(self, name: str) -> F32:
        """The first of the matrices that a tensor of three dimensions holds."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, in NumPy's order."""

    def names(self) -> Iterable[str]:
        """All tensors' names."""

    def __contains__(self, name: str) -> bool: ...


def activate(name: str, x: AnyArray) -> AnyArray:
    """The activation, elementwise, in x's own precision."""
    if name == "identity":
        return x
    if name == "relu":
        return np.maximum(x, 0)
    if name == "relu2":
        return np.square(np.maximum(x, 0))
    if name == "silu":
        return x * _sigmoid(x)
    if name == "gelu":
        return x * _normal_cdf(x)
    if name == "gelu_tanh":
        return x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))
    raise ValueError(f"activation {name!r} is unknown")


def _sigmoid(x: AnyArray) -> AnyArray:
    # Not through tanh: 1 + tanh cancels for negative x. exp overflows to infinity there, which gives the right 0.
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def _normal_cdf(x: AnyArray) -> AnyArray:
    """Φ(x) = erfc(-x/√2)/2, through the C library: NumPy has no erf. erfc, as 1 + erf cancels for negative x."""
    root = math.sqrt(0.5)
    values = (0.5 * math.erfc(-root * value) for value in x.ravel().tolist())
    return np.fromiter(values, x.dtype, x.size).reshape(x.shape)


def numpy_ffn(layer: FfnLayer, x: F32) -> F32:
    """The layer in f32 NumPy: what "the original model" means in this report."""
    return linear(numpy_hidden(layer, x), layer.w_down, layer.b_down)


def numpy_hidden(layer: FfnLayer, x: F32) -> F32:
    """What w_down multiplies: the hidden activations [..., d_ff] in f32 NumPy."""
    hidden = linear(x, layer.w_up, layer.b_up)
    if layer.w_gate is None:
        return activate(layer.activation, hidden)
    hidden *= activate(layer.activation, linear(x, layer.w_gate, layer.b_gate))
    return hidden


def linear(x: F32, w: F32, bias: F32 | None = None) -> F32:
    """x · wᵀ + bias."""
    y: F32 = x @ w.T
    if bias is not None:
        y += bias
    return y


def float64_ffn(layer: FfnLayer, x: F32) -> F64:
    """The layer in float64, from the same weights and inputs: what output errors are measured against."""

    def product(values: F64, w: F32, bias: F32 | None) -> F64:
        y: F64 = values @ w.astype(np.float64).T
        if bias is not None:
            y += bias.astype(np.float64)
        return y

    wide = x.astype(np.float64)
    hidden = product(wide, layer.w_up, layer.b_up)
    if layer.w_gate is None:
        hidden = activate(layer.activation, hidden)
    else:
        hidden = activate(layer.activation, product(wide, layer.w_gate, layer.b_gate)) * hidden
    return product(hidden, layer.w_down, layer.b_down)


def reference_function() -> FfnFunction:
    """`numpy_ffn` in the shape that the model runners take."""
    return lambda index, layer, x: numpy_ffn(layer, x)
