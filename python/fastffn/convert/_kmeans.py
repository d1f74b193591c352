"""Balanced k-means: Lloyd's algorithm whose assignment step fills every cluster with the same number of points.

Bradley, Bennett and Demiriz 2000, "Constrained K-Means Clustering" (MSR-TR-2000-65), with equal lower and upper bounds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ._assignment import F64, I64, assign

# A round that lowers the cost by less than this share of it is the last.
_ENOUGH = 1e-4


def balanced_kmeans(points: npt.NDArray[np.float32], clusters: int, rounds: int, seed: int) -> tuple[I64, F64]:
    """Clusters of equal size with a low sum of squared distances to their means.

    Args:
        points: [count, dimensions]; count is a multiple of `clusters`.
        clusters: how many.
        rounds: at most so many; fewer where the cost hardly falls any more.
        seed: of the first centres (k-means++: Arthur and Vassilvitskii 2007).

    Returns:
        [count], each point's cluster, and [clusters, dimensions], their means.
    """
    count = points.shape[0]
    wide = points.astype(np.float64)
    squares = np.einsum("ij,ij->i", wide, wide)
    centres = _first_centres(wide, clusters, np.random.default_rng(seed))
    sizes = np.full(clusters, count // clusters, np.int64)
    prices = np.zeros(clusters)
    best = np.inf
    while True:
        cost = squares[:, None] + np.einsum("ij,ij->i", centres, centres) - 2 * (wide @ centres.T)
        # The last round's prices: few exchanges are left to make.
        labels, prices = assign(cost, sizes, prices)
        centres = np.stack([wide[labels == cluster].mean(axis=0) for cluster in range(clusters)])
        total = float(cost[np.arange(count), labels].sum())
        rounds -= 1
        if rounds <= 0 or not total < best * (1 - _ENOUGH):
            return labels, centres
        best = total


def _first_centres(points: F64, clusters: int, rng: np.random.Generator) -> F64:
    """Points drawn one after the other, each in proportion to its squared distance from those before."""
    chosen = [int(rng.integers(len(points)))]
    distance = np.square(points - points[chosen[0]]).sum(axis=1)
    while len(chosen) < clusters:
        total = distance.sum()
        if total > 0:
            chosen.append(int(rng.choice(len(points), p=distance / total)))
        else:  # fewer different points than clusters
            chosen.append(len(chosen) % len(points))
        distance = np.minimum(distance, np.square(points - points[chosen[-1]]).sum(axis=1))
    return points[chosen]
