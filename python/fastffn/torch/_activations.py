"""The library's activations in torch, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "identity": lambda x: x,
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
}


def activation_named(name: str, operation: str) -> Callable[[Any], Any]:
    """The function; ValueError for a name the library does not know."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{operation}: activation is {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]
