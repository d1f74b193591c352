"""Routers of a mixture of experts, beside :func:`fastffn.route_topk`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastffn import _copies, _core


@dataclass(frozen=True)
class ExpertLoad:
    """How many slots of a route named each expert.

    Attributes:
        counts: [num_experts] int64, of the ids' kind.
        slots: slots in use: the sum of counts. Empty ones (-1) do not count.
        max: the largest count.
        mean: slots / num_experts.
        idle: experts without a slot.
    """

    counts: Any
    slots: int
    max: int
    mean: float
    idle: int

    @property
    def imbalance(self) -> float:
        """max / mean: 1 where all experts have the same load; 0 where no slot is in use."""
        return self.max / self.mean if self.slots else 0.0


def router_scores() -> tuple[str, ...]:
    """Names that :func:`fastffn.route_topk` takes as ``score``."""
    return _core.router_scores()


def router_logits(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    previous: Any = None,
    mix: Any = None,
    out: Any = None,
    stream: Any = None,
) -> Any:
    """Logits of a linear router, in f32 whatever the dtype of x: x · wᵀ + bias + previous · mixᵀ.

    Args:
        x: [..., d_model], f32, f16 or bf16.
        w: packed [experts, d_model]; "f32" is what routers want, see :func:`fastffn.pack`.
        bias: [experts]; None for none.
        previous: [..., experts], the logits of the layer before, for MoE++'s gating residuals (arXiv:2410.07348); None for
            none.
        mix: packed [experts, experts], the matrix for ``previous``.
        out: where to write: [..., experts] f32.
        stream: with w on a CUDA device, as :func:`fastffn.linear`; ``previous`` is for the CPU alone.

    Returns:
        [..., experts] f32, of x's kind; pass it to :func:`fastffn.route_topk`, and to the next layer's ``previous``.

    Raises:
        ValueError, TypeError, BufferError, RuntimeError, MemoryError: as :func:`fastffn.linear`.
    """
    return _core.router_logits(x, w, bias, previous, mix, out, stream)


def route_expert_choice(
    logits: Any,
    k: int | None = None,
    *,
    capacity: int | None = None,
    capacity_factor: float | None = None,
    score: str = "softmax",
    out: tuple[Any, Any] | None = None,
    stream: Any = None,
) -> tuple[Any, Any]:
    """Experts choose tokens (Zhou et al. 2022, arXiv:2202.09368).

    Every expert takes the ``capacity`` tokens with its best scores; ties go to the earlier token. Not causal: a token's
    route depends on the other tokens of the call. A token may be taken by no expert.

    Args:
        logits: [..., experts], f32, f16 or bf16, as :func:`fastffn.route_topk`.
        k: slots per token; of a token that more experts took, the largest weights stay. None: as many as experts.
        capacity: tokens per expert, 0 or more; or
        capacity_factor: capacity = ⌈tokens · capacity_factor / experts⌉.
        score: "softmax" over the experts, or "sigmoid".
        out, stream: as :func:`fastffn.route_topk`.

    Returns:
        ids [..., k] int32 and weights [..., k] f32, each token's from the best weight down, then -1 and 0.

    Raises:
        ValueError, TypeError, BufferError, RuntimeError, MemoryError: as :func:`fastffn.linear`.
    """
    return _core.route_expert_choice(logits, k, capacity, capacity_factor, score, out, stream)


def route_hash(tokens: Any, table: Any, *, out: tuple[Any, Any] | None = None, stream: Any = None) -> tuple[Any, Any]:
    """Hash layers (Roller et al. 2021, arXiv:2106.04426): ids = table[tokens], weights 1.

    Args:
        tokens: [...] ids of tokens, int32 or int64, contiguous.
        table: [vocabulary, k] ids of experts, int32 or int64, contiguous; -1 leaves a slot empty, with weight 0.
        out, stream: as :func:`fastffn.route_topk`.

    Returns:
        ids [..., k] int32 and weights [..., k] f32, of the kind of ``tokens``.

    Raises:
        ValueError: a token that the table has no row for (on a CUDA device its slots are empty instead); shapes and dtypes that do not fit.
        TypeError, BufferError: as :func:`fastffn.linear`.
    """
    return _core.route_hash(tokens, table, out, stream)


def limit_capacity(
    ids: Any,
    weights: Any,
    num_experts: int,
    *,
    capacity: int | None = None,
    capacity_factor: float | None = None,
    stream: Any = None,
) -> tuple[Any, Any]:
    """Drops what is over an expert's capacity, in place (GShard, arXiv:2006.16668).

    First slots are filled in the order of the tokens, then second ones, and so on: no token's second choice takes the
    place of another's first. A slot that finds its expert full becomes id -1, weight 0.

    Args:
        ids: [..., k] int32, contiguous, writable; -1 for empty slots.
        weights: [..., k] f32, contiguous, writable.
        num_experts: ids are below this.
        capacity: slots per expert, 0 or more; or
        capacity_factor: capacity = ⌈capacity_factor · tokens · k / num_experts⌉.
        stream: as :func:`fastffn.route_topk`.

    Returns:
        (ids, weights), the arrays that were passed.

    Raises:
        ValueError: ids out of range (on a CUDA device they become empty slots); shapes and dtypes that do not fit.
        TypeError, BufferError: as :func:`fastffn.linear`.
    """
    return _core.limit_capacity(ids, weights, num_experts, capacity, capacity_factor, stream)


def expert_load(ids: Any, num_experts: int, *, stream: Any = None) -> ExpertLoad:
    """How evenly a route uses its experts.

    Args:
        ids: int32 of any shape, contiguous; -1 for empty slots.
        num_experts: ids are below this.
        stream: as :func:`fastffn.route_topk`. The numbers are read here, so this waits for a device.

    Raises:
        ValueError: ids out of range (on a CUDA device they do not count), or of another dtype.
        TypeError, BufferError: as :func:`fastffn.linear`.
    """
    counts = _core.expert_load(ids, num_experts, stream)
    # Arrays of frameworks know tolist; our own speaks the buffer protocol.
    values: Any = _copies.to_host(counts) if _copies.is_on_device(counts) else counts
    if not hasattr(values, "tolist"):
        values = memoryview(values)
    numbers = [int(count) for count in values.tolist()]
    slots = sum(numbers)
    return ExpertLoad(counts, slots, max(numbers), slots / num_experts, numbers.count(0))
