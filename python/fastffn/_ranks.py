"""How many ranks: of one weight for a share of its parameters, of many weights for a number of bytes."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def rank_for(ratio: float, out_features: int, in_features: int) -> int:
    """The rank at which both factors have ``ratio`` of the weight's parameters: ⌊ratio · m n / (m + n)⌋, at least 1."""
    if not 0 < ratio < math.inf:
        raise ValueError(f"rank_for: ratio is {ratio}, expected a finite number above 0")
    return max(1, int(ratio * out_features * in_features / (out_features + in_features)))


def allocate_ranks(
    spectra: Sequence[Any],
    shapes: Sequence[tuple[int, int]],
    budget: int,
    *,
    bytes_per_weight: float = 2.0,
    multiple: int = 1,
    minimum: int = 1,
    normalize: bool = True,
) -> list[int]:
    """Ranks of many weights that together fit a number of bytes and lose least.

    Each weight's loss falls by its next singular value squared with each rank, at the price of out_features + in_features
    weights: the largest fall per byte comes first. As spectra fall, no other ranks of as many bytes lose less in sum; only
    what is left of the budget in the end, less than a step, may be spent better. Ranks that hold nothing are not bought.

    Args:
        spectra: per weight its squared singular values, largest first (:func:`spectrum`).
        shapes: per weight (out_features, in_features).
        budget: bytes for all factors together.
        bytes_per_weight: of the factors' format: 2 for bf16 and f16, 4 for f32, 1 for int8.
        multiple: ranks beyond the minimum are multiples of this: 16 fills the kernels' panels.
        minimum: of each rank.
        normalize: losses relative to each weight's total, so that weights of large outputs do not take all; False where
            spectra are comparable.

    Returns:
        One rank per weight, at most min(shape).

    Raises:
        ValueError: the minimum ranks do not fit the budget; lists of different length; spectra, shapes or prices that are
            none.
    """
    if len(spectra) != len(shapes):
        raise ValueError(f"allocate_ranks: {len(spectra)} spectra and {len(shapes)} shapes, expected as many")
    if multiple < 1 or minimum < 1:
        raise ValueError(f"allocate_ranks: multiple is {multiple} and minimum {minimum}, expected 1 or more")
    if not (0 < bytes_per_weight < math.inf and budget >= 0):
        raise ValueError(
            f"allocate_ranks: budget is {budget} and bytes_per_weight {bytes_per_weight}, expected bytes and more than 0"
        )
    gains: list[npt.NDArray[np.float64]] = []
    for values, shape in zip(spectra, shapes, strict=True):
        energy = np.sort(np.asarray(values, np.float64))[::-1]
        if energy.ndim != 1 or not (np.isfinite(energy).all() and (energy >= 0).all()):
            raise ValueError("allocate_ranks: a spectrum is no list of squared singular values, finite and 0 or more")
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(f"allocate_ranks: a shape is {tuple(shape)}, expected (out_features, in_features)")
        total = float(energy.sum())
        gains.append(energy / total if normalize and total > 0 else energy)
    prices = [(m + n) * bytes_per_weight for m, n in shapes]
    limits = [min(m, n) for m, n in shapes]
    ranks = [min(minimum, limit) for limit in limits]
    left = budget - sum(rank * price for rank, price in zip(ranks, prices, strict=True))
    if left < 0:
        raise ValueError(
            f"allocate_ranks: budget is {budget} bytes, the minimum ranks alone take {math.ceil(budget - left)}"
        )

    def offer(index: int) -> tuple[float, int, int]:
        step = min(multiple - ranks[index] % multiple, limits[index] - ranks[index])
        gain = float(gains[index][ranks[index] : ranks[index] + step].sum())
        return (-gain / (step * prices[index]), index, step)

    heap = [offer(index) for index in range(len(shapes)) if ranks[index] < limits[index]]
    heapq.heapify(heap)
    while heap:
        gain, index, step = heapq.heappop(heap)
        if gain == 0 or step * prices[index] > left:
            continue  # a cheaper weight's next ranks may still fit
        ranks[index] += step
        left -= step * prices[index]
        if ranks[index] < limits[index]:
            heapq.heappush(heap, offer(index))
    return ranks
