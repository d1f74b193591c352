"""The layer that every contender runs: its weights, its input, and what it should compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}

# Relative error (Frobenius norm) against f32 that a correct contender stays well below. Loose for int8, as torch
# quantises a whole tensor with one scale.
TOLERANCE = {"f32": 1e-4, "bf16": 0.03, "int8": 0.2}


class Skip(Exception):
    """This contender cannot run here; the message says why."""


@dataclass(frozen=True)
class Layer:
    """``down(act(gate x) * up x)`` or ``down(act(up x))`` with random weights in the layout of ``torch.nn.Linear``."""

    d_model: int
    d_ff: int
    activation: str
    gated: bool
    up: torch.Tensor  # (d_ff, d_model), f32
    down: torch.Tensor  # (d_model, d_ff), f32
    gate: torch.Tensor | None  # (d_ff, d_model), f32

    @staticmethod
    def random(d_model: int, d_ff: int, activation: str, gated: bool, seed: int = 0) -> Layer:
        generator = torch.Generator().manual_seed(seed)

        def matrix(rows: int, columns: int) -> torch.Tensor:
            return torch.randn(rows, columns, generator=generator) / columns**0.5

        up, down = matrix(d_ff, d_model), matrix(d_model, d_ff)
        return Layer(d_model, d_ff, activation, gated, up, down, matrix(d_ff, d_model) if gated else None)

    @property
    def parameters(self) -> int:
        return (3 if self.gated else 2) * self.d_model * self.d_ff

    def act(self, x: torch.Tensor) -> torch.Tensor:
        return ACTIVATIONS[self.activation](x)

    def reference(self, x: torch.Tensor) -> torch.Tensor:
        """The layer in f32, whatever the dtype of x."""
        x = x.float()
        hidden = F.linear(x, self.up)
        hidden = self.act(F.linear(x, self.gate)) * hidden if self.gate is not None else self.act(hidden)
        return F.linear(hidden, self.down)


def relative_error(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y.float() - expected).norm() / expected.norm()).item()
