"""The mixture of experts that every contender runs, its routes, and what it should compute."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

# name: experts, picks, d_model, d_ff of an expert. As in OLMoE, in Mixtral at a quarter of its bytes, and in Qwen3-30B-A3B.
SHAPES = {"olmoe": (64, 8, 2048, 1024), "mixtral": (8, 2, 2048, 7168), "qwen3": (128, 8, 2048, 768)}

# Relative error (Frobenius norm) against f32 that a correct contender stays well below. int4 holds Gaussian weights in 15
# steps of one scale per group, or per row (kt-kernel).
TOLERANCE = {"bf16": 0.02, "int8": 0.06, "int4": 0.4}
BYTES = {"bf16": 2, "int8": 1, "int4": 0.5}


def shape_of(name: str) -> tuple[int, int, int, int]:
    """Experts, picks, d_model, d_ff of a name of SHAPES, or of numbers joined by x."""
    if name in SHAPES:
        return SHAPES[name]
    experts, picks, d_model, d_ff = map(int, name.split("x"))
    return experts, picks, d_model, d_ff


@dataclass(frozen=True)
class Route:
    """Experts [tokens, picks] int32, distinct within a row, and their weights f32, which add up to 1."""

    ids: torch.Tensor
    weights: torch.Tensor

    @cached_property
    def long_ids(self) -> torch.Tensor:
        """For contenders that want int64: made once, so that it is not part of their time."""
        return self.ids.long()

    @property
    def active(self) -> int:
        """Experts with a token."""
        return int(torch.unique(self.ids).numel())


@dataclass(frozen=True)
class MoeLayer:
    """Σ_j weight_j · down_j(silu(gate_j x) * up_j x) with random bf16 weights in the layout of ``torch.nn.Linear``."""

    picks: int
    gate: torch.Tensor  # (experts, d_ff, d_model)
    up: torch.Tensor
    down: torch.Tensor  # (experts, d_model, d_ff)

    @staticmethod
    def random(experts: int, picks: int, d_model: int, d_ff: int, seed: int = 0) -> MoeLayer:
        generator = torch.Generator().manual_seed(seed)

        def stack(rows: int, columns: int) -> torch.Tensor:
            out = torch.empty(experts, rows, columns, dtype=torch.bfloat16)
            for expert in range(experts):  # f32 numbers for one expert at a time
                out[expert] = torch.randn(rows, columns, generator=generator) / columns**0.5
            return out

        return MoeLayer(picks, stack(d_ff, d_model), stack(d_ff, d_model), stack(d_model, d_ff))

    @property
    def experts(self) -> int:
        return self.gate.shape[0]

    @property
    def d_model(self) -> int:
        return self.gate.shape[2]

    @property
    def d_ff(self) -> int:
        return self.gate.shape[1]

    @property
    def expert_parameters(self) -> int:
        return 3 * self.d_model * self.d_ff

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.picks * self.expert_parameters

    def reference(self, x: torch.Tensor, route: Route) -> torch.Tensor:
        """In f32, for a few rows."""
        y = torch.zeros(x.shape[0], self.d_model)
        for row in range(x.shape[0]):
            values = x[row].float()
            for expert, weight in zip(route.ids[row].tolist(), route.weights[row], strict=True):
                hidden = F.silu(self.gate[expert].float() @ values) * (self.up[expert].float() @ values)
                y[row] += weight * (self.down[expert].float() @ hidden)
        return y


def _route(ids: torch.Tensor, generator: torch.Generator) -> Route:
    weights = torch.rand(ids.shape, generator=generator) + 0.1
    return Route(ids.int().contiguous(), (weights / weights.sum(1, keepdim=True)).contiguous())


def uniform(tokens: int, layer: MoeLayer, seed: int) -> Route:
    """Every expert is as likely as any other."""
    generator = torch.Generator().manual_seed(seed)
    return _route(torch.rand(tokens, layer.experts, generator=generator).topk(layer.picks).indices, generator)


def zipf(tokens: int, layer: MoeLayer, seed: int, power: float = 1.0) -> Route:
    """The expert of rank r is drawn in proportion to 1 / r^power, without repetition in a row; ranks are shuffled."""
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randperm(layer.experts, generator=generator) + 1
    # Gumbel noise on log-probabilities: the k largest are a draw of k without replacement.
    noise = -torch.log(-torch.log(torch.rand(tokens, layer.experts, generator=generator).clamp_min(1e-12)))
    return _route((noise - power * ranks.float().log()).topk(layer.picks).indices, generator)


def uniform_like(route: Route, layer: MoeLayer, seed: int) -> Route:
    """A uniform route over the experts that another one uses, each of them used: equal bytes of weights."""
    generator = torch.Generator().manual_seed(seed)
    used = torch.unique(route.ids).long()
    tokens = route.ids.shape[0]
    ids = used[torch.rand(tokens, used.numel(), generator=generator).topk(layer.picks).indices]
    for expert in set(used.tolist()) - set(ids.flatten().tolist()):
        # Give it a slot of the expert with the most.
        most = torch.bincount(ids.flatten(), minlength=layer.experts).argmax()
        row, slot = (ids == most).nonzero()[0].tolist()
        ids[row, slot] = expert
    return _route(ids, generator)
