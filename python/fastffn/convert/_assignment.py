"""Balanced assignment: every group gets exactly as many members as it holds, at the least total cost.

This is a transportation problem with few groups and many members. Successive shortest paths solve it exactly: everyone
begins with the cheapest group, and one member after the other is moved along a cheapest chain of exchanges from a group
that is too full to one with room. Chains go over groups, of which there are few, so no general solver is needed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


def balanced_assignment(cost: F64, sizes: I64 | None = None) -> I64:
    """The assignment of members to groups with the least total cost, among those that fill every group exactly.

    Args:
        cost: [members, groups], finite: what it costs to put a member into a group.
        sizes: [groups], members of each group; they add up to the number of members. None: all equal.

    Returns:
        [members], each member's group. Among assignments of equal cost, always the same one.

    Raises:
        ValueError: cost is no finite matrix, or the sizes do not fit it.
    """
    cost = np.asarray(cost, np.float64)
    if cost.ndim != 2 or not np.isfinite(cost).all():
        raise ValueError(f"balanced_assignment: cost has shape {cost.shape}; expected a finite [members, groups]")
    members, groups = cost.shape
    if sizes is None:
        if groups == 0 or members % groups:
            raise ValueError(f"balanced_assignment: {members} members cannot fill {groups} groups equally")
        sizes = np.full(groups, members // groups, np.int64)
    sizes = np.asarray(sizes, np.int64)
    if sizes.shape != (groups,) or (sizes < 0).any() or sizes.sum() != members:
        raise ValueError(
            f"balanced_assignment: sizes {sizes.tolist()}, expected {groups} of them, none negative, that add up to"
            f" {members}"
        )
    return assign(cost, sizes, np.zeros(groups))[0]


def assign(cost: F64, sizes: I64, prices: F64) -> tuple[I64, F64]:
    """As `balanced_assignment`, on checked arguments, beginning at `prices` of the groups; returns the final prices too.

    Any prices lead to the same cost; those of a similar problem (the last round of k-means) get there sooner.
    """
    groups = cost.shape[1]
    # Optimal for these prices, whatever they are. Each further step keeps that true, and ends with full groups.
    labels = np.argmin(cost - prices, axis=1).astype(np.int64)
    prices = prices.copy()
    counts = np.bincount(labels, minlength=groups)
    exchange, who = np.empty((groups, groups)), np.empty((groups, groups), np.int64)

    def update(group: int) -> None:
        """exchange[a, b]: what it costs to move the best member from a to b, and who[a, b] that is."""
        inside = np.flatnonzero(labels == group)
        if not inside.size:
            exchange[group] = np.inf
            return
        change = cost[inside] - cost[inside, group][:, None]
        best = change.argmin(axis=0)
        exchange[group] = change[best, np.arange(groups)]
        who[group] = inside[best]

    for group in range(groups):
        update(group)
    while (counts > sizes).any():
        path, distance = _cheapest_path(exchange + prices[:, None] - prices, counts > sizes, counts < sizes)
        prices += distance
        moved = [who[a, b] for a, b in zip(path, path[1:])]
        labels[moved] = path[1:]
        counts[path[0]] -= 1
        counts[path[-1]] += 1
        for group in path:
            update(group)
    return labels, prices


def _cheapest_path(lengths: F64, starts: npt.NDArray[np.bool_], ends: npt.NDArray[np.bool_]) -> tuple[list[int], F64]:
    """Dijkstra's path from any start to the nearest end, and each node's distance, at most that of the end."""
    # Prices keep every length at zero or above, but for rounding.
    lengths = np.maximum(lengths, 0)
    distance = np.where(starts, 0.0, np.inf)
    before = np.full(len(starts), -1)
    done = np.zeros(len(starts), bool)
    while True:
        node = int(np.where(done, np.inf, distance).argmin())
        if ends[node]:
            break
        done[node] = True
        through = distance[node] + lengths[node]
        better = ~done & (through < distance)
        distance[better] = through[better]
        before[better] = node
    path = [node]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    return path[::-1], np.minimum(distance, distance[node])
