"""What both tree modules share: descending, soft decisions, and the losses of training.

Shapes: x [tokens, d_model]; node weights [trees, nodes, d_model] in heap order (node n has the children 2n + 1, left, and
2n + 2, right); biases and thresholds [trees, nodes].
"""

from __future__ import annotations

import math
from typing import Any

import torch

# The reference's clamp of p before its logarithm.
_LEAST_PROBABILITY = 1e-6


def goes_right(z: Any, threshold: Any, tie: str) -> Any:
    """The decision: z above its threshold is right, equality as `tie` says, NaN left."""
    bound = 0.0 if threshold is None else threshold
    return z >= bound if tie == "ge" else z > bound


def descend(x: Any, weight: Any, bias: Any, threshold: Any, depth: int, tie: str) -> tuple[Any, Any]:
    """Hard decisions without gradient, level by level, only in the nodes on the way.

    Returns:
        (leaf, margin): leaf [tokens, trees] int64; margin [tokens, trees], the smallest |z - threshold| on the way (inf
        at depth 0).
    """
    with torch.no_grad():
        trees = torch.arange(weight.shape[0], device=x.device)
        node = torch.zeros((x.shape[0], weight.shape[0]), dtype=torch.long, device=x.device)
        margin = torch.full(node.shape, math.inf, dtype=x.dtype, device=x.device)
        for _ in range(depth):
            z = torch.einsum("td,tkd->tk", x, weight[trees, node])
            if bias is not None:
                z = z + bias[trees, node]
            bound = None if threshold is None else threshold[trees, node]
            margin = torch.minimum(margin, (z if bound is None else z - bound).abs())
            node = 2 * node + 1 + goes_right(z, bound, tie).long()
        return node - (2**depth - 1), margin


def mixture(p: Any, depth: int) -> Any:
    """[tokens, trees, 2^depth]: for every leaf the product of p (right) and 1 - p (left) along its path, from p at all nodes."""
    weights = torch.ones((*p.shape[:2], 1), dtype=p.dtype, device=p.device)
    for level in range(depth):
        here = p[..., 2**level - 1 : 2 ** (level + 1) - 1]
        weights = torch.stack((weights * (1 - here), weights * here), dim=-1).flatten(-2)
    return weights


def hardening_loss(p: Any) -> Any:
    """Mean Bernoulli entropy of decisions p, in nats; 0 where there are none (Belcak and Wattenhofer, arXiv:2308.14711).

    Added to the task's loss with a weight h, it drives decisions to 0 or 1, so that hard decisions lose little.
    """
    if p.numel() == 0:
        return p.new_zeros(())
    p = p.clamp(_LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return -(p * p.log() + (1 - p) * (1 - p).log()).mean()


def balance_loss(weights: Any, leaf: Any) -> Any:
    """2^depth · Σ_leaf f·P, the mean over trees: eFFF's load balancing (arXiv:2405.16836), 1 where leaves share evenly.

    Args:
        weights: [tokens, trees, 2^depth], `mixture`; P is their mean over tokens and carries the gradient.
        leaf: [tokens, trees], where hard decisions lead; f is the fraction of tokens that a leaf gets.
    """
    leaves = weights.shape[-1]
    f = torch.nn.functional.one_hot(leaf, leaves).to(weights.dtype).mean(dim=0)
    return leaves * (f * weights.mean(dim=0)).sum(dim=-1).mean()


def auxiliary_loss(module: Any, *, hardening: float = 0.0, balance: float = 0.0) -> Any:
    """hardening · Σ hardening_loss + balance · Σ balance_loss over all `FFF` in a module, from their last soft forward.

    The papers take hardening 3 (at the end) and balance 1 (at the beginning; eFFF drops it in its second phase).
    """
    total: Any = 0.0
    found = 0
    for part in module.modules():
        if getattr(part, "hardening_loss", None) is not None and getattr(part, "balance_loss", None) is not None:
            total = total + hardening * part.hardening_loss + balance * part.balance_loss
            found += 1
    if not found:
        raise ValueError("auxiliary_loss: the module has no FFF that ran a soft forward")
    return total
