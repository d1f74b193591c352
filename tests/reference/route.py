"""Routers in float64: which experts a token uses, and with what weights.

    softmax       p = softmax(l)
    topk_softmax  softmax over the k chosen logits
    sigmoid       p = 1 / (1 + exp(-l))
    relu          p = gamma · relu(l) / sqrt(mean(relu(l)²) + eps)     (BlockFFN, arXiv:2507.08771)

Experts are chosen by p + correction_bias, in the groups that stay (DeepSeek-V2, arXiv:2405.04434; V3, arXiv:2412.19437).
One token at a time, in the order the papers write it.
"""

import math
from dataclasses import dataclass

import numpy as np

U = 2.0**-24


@dataclass
class Route:
    ids: np.ndarray  # [tokens, k]
    weights: np.ndarray
    margin: (
        np.ndarray
    )  # [tokens] the smallest difference that a choice of this token hung on, relative to what was compared


def sigmoid(x):
    x = np.asarray(x, np.float64)
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


def scores(logits, score, gamma=None, norm_eps=1e-6):
    """p of one row."""
    if score == "relu":
        positive = np.maximum(logits, 0)
        p = positive / math.sqrt(np.mean(positive**2) + norm_eps)
        return p if gamma is None else p * np.asarray(gamma, np.float64)
    if score == "sigmoid":
        return sigmoid(logits)
    e = np.exp(logits - logits.max())
    return e / e.sum()


def _best(values, count, margins):
    """Indices of the largest values from the best down, ties to the lower index; notes the gaps they hung on."""
    order = np.argsort(-values, kind="stable")
    last = min(count + 1, len(values))
    gaps = -np.diff(values[order[:last]])
    largest = np.abs(values[np.isfinite(values)]).max(initial=0) or 1
    margins.extend(gap / largest for gap in gaps if gap > 0 and math.isfinite(gap))  # exact ties have a rule
    return order[:count]


def topk(
    logits,
    k,
    score="softmax",
    renormalize=False,
    scale=1.0,
    bias=None,
    correction_bias=None,
    groups=1,
    topk_groups=None,
    group_score="max",
    top_p=1.0,
    gamma=None,
    norm_eps=1e-6,
):
    """ids, weights and margins of logits [tokens, experts]."""
    logits = np.asarray(logits, np.float64)
    tokens, experts = logits.shape
    k = experts if k is None else k
    ids = np.full((tokens, k), -1, np.int32)
    weights = np.zeros((tokens, k))
    margin = np.full(tokens, np.inf)
    for t in range(tokens):
        row = logits[t] + (0 if bias is None else np.asarray(bias, np.float64))
        if (~(row < np.inf)).any() or (score != "relu" and (row == -np.inf).all()):
            ids[t] = np.arange(k)
            continue
        p = scores(row, score, gamma, norm_eps)
        choice = np.abs(p) if score == "relu" else p
        if correction_bias is not None:
            choice = choice + np.asarray(correction_bias, np.float64)
        elif score != "relu" and (group_score == "max" or score == "topk_softmax"):
            choice = row  # the same order, and no underflow
        sums = topk_groups and topk_groups < groups and group_score == "top2"
        exact = choice is row and bias is None and not sums  # logits are compared as they came
        margins = []
        if topk_groups and topk_groups < groups:
            members = choice.reshape(groups, -1)
            ranked = np.sort(members, axis=1)[:, ::-1]
            best = ranked[:, :2].sum(axis=1) if group_score == "top2" else ranked[:, 0]
            kept = _best(best, topk_groups, margins)
            choice = np.where(np.isin(np.arange(groups), kept)[:, None], members, -np.inf).reshape(-1)
        chosen = _best(choice, k, margins)
        if exact:
            margins.clear()
        if score == "topk_softmax":
            picked = np.where(choice[chosen] == -np.inf, 0, np.exp(row[chosen] - row[chosen[0]]))
            w = picked / picked.sum()
        else:
            w = np.where(choice[chosen] == -np.inf, 0, p[chosen])
        used = k
        if score == "relu":
            used = int((w != 0).sum())
        elif top_p < 1:
            mass = np.cumsum(w)
            used = min(int((mass < top_p).sum()) + 1, k)
            margins.extend(gap for gap in np.abs(mass - top_p) if gap > 0)
        w = w[:used]
        if renormalize:
            total = w.sum() + (1e-20 if score == "sigmoid" else 0)
            w = w / total if total else w
        ids[t, :used] = chosen[:used]
        weights[t, :used] = w * scale
        margin[t] = min(margins, default=np.inf)
    return Route(ids, weights, margin)


def weight_error(logits, weights, score, scale=1.0):
    """How far f32 weights may be from these, for finite logits [tokens, experts].

    exp(l - max): the difference rounds once, so that its result is off by |l - max| u, and 2 u of its own (core/activations);
    a sum of E terms meets at most E/8 + 3 roundings per lane and reduction; and 4 for the division, the scale, a bias. Twice
    that, because numerator and denominator are each off. Results under the smallest normal number lose bits for good.
    """
    logits = np.asarray(logits, np.float64)
    finite = np.where(np.isfinite(logits), logits, 0)
    spread = np.abs(finite).max(axis=-1, initial=0) * 2 if score != "relu" else np.zeros(len(finite))
    units = 2 * (spread + logits.shape[-1] / 8 + 9)
    return units[:, None] * U * np.abs(weights) + 2.0**-125 * max(scale, 1) * np.maximum(1, spread)[:, None]


def expert_choice(logits, capacity, k=None, score="softmax"):
    """Every expert takes its best tokens (Zhou et al. 2022, arXiv:2202.09368)."""
    logits = np.asarray(logits, np.float64)
    tokens, experts = logits.shape
    k = experts if k is None else k
    taken = np.zeros((tokens, experts), bool)
    valid = (logits < np.inf).all(axis=1) & (logits > -np.inf).any(axis=1)
    p = np.array([scores(row, score) if good else row * np.nan for row, good in zip(logits, valid, strict=True)])
    p = p.reshape(tokens, experts)
    for e in range(experts):
        open_tokens = [t for t in range(tokens) if valid[t] and logits[t, e] > -np.inf]
        for t in sorted(open_tokens, key=lambda t: (-p[t, e], t))[:capacity]:
            taken[t, e] = True
    ids = np.full((tokens, k), -1, np.int32)
    weights = np.zeros((tokens, k))
    for t in range(tokens):
        mine = sorted(np.flatnonzero(taken[t]), key=lambda e: (-p[t, e], e))[:k]
        ids[t, : len(mine)] = mine
        weights[t, : len(mine)] = p[t, mine]
    return ids, weights


def limit_capacity(ids, weights, experts, capacity):
    """First choices of all tokens, then second ones (GShard, arXiv:2006.16668)."""
    ids, weights = ids.copy(), weights.copy()
    used = np.zeros(experts, int)
    for j in range(ids.shape[1]):
        for t in range(ids.shape[0]):
            if ids[t, j] < 0:
                continue
            if used[ids[t, j]] < capacity:
                used[ids[t, j]] += 1
            else:
                ids[t, j], weights[t, j] = -1, 0
    return ids, weights
