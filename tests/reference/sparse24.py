"""2:4 sparsity in plain loops over float64: the oracle of ff.prune24, ff.check24 and the forms weights are kept in.

A group is four consecutive weights of a row; the last one of a row is filled with zeros.

    magnitude     keep the two largest |w| of a group
    wanda         keep the two largest |w|·‖x_k‖₂                                     (Sun et al. 2023, arXiv:2306.11695)
    sparsegpt     keep the two largest w²/[H⁻¹]_kk, spread the loss over what follows  (Frantar and Alistarh 2023,
                  arXiv:2301.00774); here by the definition: after each weight, H⁻¹ of the remaining columns
    transposable  4×4 blocks with two in each row and column: one of 90 patterns        (Hubara et al. 2021, arXiv:2102.08124)

Of equal scores the lower index stays.
"""

import itertools

import numpy as np

PAIRS = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
NIBBLES = {pair: pair[0] | pair[1] << 2 for pair in PAIRS}


def groups_of(row):
    """A row as lists of four, filled with zeros."""
    row = list(row) + [0.0] * (-len(row) % 4)
    return [row[begin : begin + 4] for begin in range(0, len(row), 4)]


def keep_two(scores):
    """Mask [R, K] of the two largest of every group; none of the columns that only fill up."""
    scores = np.asarray(scores, np.float64)
    mask = np.zeros(scores.shape, bool)
    for row in range(scores.shape[0]):
        for begin in range(0, scores.shape[1], 4):
            columns = range(begin, min(begin + 4, scores.shape[1]))
            for column in sorted(columns, key=lambda at: (-scores[row, at], at))[:2]:
                mask[row, column] = True
    return mask


def magnitude(w):
    return keep_two(np.abs(w))


def wanda(w, x):
    return keep_two(np.abs(np.asarray(w, np.float64)) * np.sqrt((np.asarray(x, np.float64) ** 2).sum(0)))


def patterns():
    """The 90 4×4 patterns with two in each row and column, in ascending order of their codes, bit 4·row + column."""
    rows = [sum(1 << column for column in pair) for pair in itertools.combinations(range(4), 2)]
    codes = []
    for chosen in itertools.product(rows, repeat=4):
        if all(sum(row >> column & 1 for row in chosen) == 2 for column in range(4)):
            codes.append(sum(row << 4 * index for index, row in enumerate(chosen)))
    return [np.array([code >> bit & 1 for bit in range(16)], bool).reshape(4, 4) for code in sorted(codes)]


def transposable(w):
    """Mask [R, K] with the largest Σ|w| per block; edges are filled with zeros and cut off again."""
    w = np.abs(np.asarray(w, np.float64))
    rows, columns = w.shape
    padded = np.pad(w, [(0, -rows % 4), (0, -columns % 4)])
    mask = np.zeros(padded.shape, bool)
    known = patterns()
    for top in range(0, rows, 4):
        for left in range(0, columns, 4):
            block = padded[top : top + 4, left : left + 4]
            sums = [block[pattern].sum() for pattern in known]
            mask[top : top + 4, left : left + 4] = known[int(np.argmax(sums))]
    return mask[:rows, :columns]


def damped(x, damping):
    """H = XᵀX + λI, λ = damping · mean of the diagonal."""
    x = np.asarray(x, np.float64)
    gram = x.T @ x
    return gram + damping * np.diagonal(gram).mean() * np.eye(gram.shape[0])


def sparsegpt(w, x, damping=0.01):
    """Pruned and updated weights, one column at a time with the inverse of what remains of H, as the paper defines it."""
    w = np.array(w, np.float64)
    rows, columns = w.shape
    hessian = damped(x, damping)
    kept = np.zeros(w.shape, bool)
    for column in range(columns):
        inverse = np.linalg.inv(hessian[column:, column:])
        if column % 4 == 0:
            # The costs of a group's columns when those before them are out: the diagonal of each one's own inverse.
            ends = range(column, min(column + 4, columns))
            costs = np.stack([np.abs(w[:, at]) / np.linalg.inv(hessian[at:, at:])[0, 0] ** 0.5 for at in ends], axis=1)
            kept[:, column : column + 4] = keep_two(costs)
        for row in range(rows):
            if not kept[row, column]:
                w[row, column:] -= w[row, column] / inverse[0, 0] * inverse[0]
                w[row, column] = 0
    return w


def loss(w, pruned, x):
    """‖(W - Ŵ)Xᵀ‖²."""
    return float(
        np.linalg.norm((np.asarray(w, np.float64) - np.asarray(pruned, np.float64)) @ np.asarray(x, np.float64).T) ** 2
    )


def compress(w, pads):
    """Values [R, 2G] and pairs of indices [R][G]; `pads(places)`: the pair of a group with fewer than two nonzeros."""
    values, pairs = [], []
    for row in np.asarray(w):
        chosen = []
        for group in groups_of(row):
            places = tuple(index for index, value in enumerate(group) if value != 0)
            assert len(places) <= 2
            chosen.append(places if len(places) == 2 else pads(places))
        pairs.append(chosen)
        values.append([group[index] for group, pair in zip(groups_of(row), chosen) for index in pair])
    return np.array(values), pairs


def canonical_pads(places):
    """mma.sp: 2 3, but 0 3 and 1 3 where the only nonzero is at 0 or 1."""
    return {(0,): (0, 3), (1,): (1, 3)}.get(places, (2, 3))


def bitmask_pads(places):
    """compressed-tensors 0.9.4, by running it on the five patterns."""
    return {(0,): (0, 2), (1,): (1, 3)}.get(places, (2, 3))


def torch_pads(places):
    """torch.sparse._semi_structured_conversions, by its table."""
    return {(0,): (0, 2), (1,): (1, 2)}.get(places, (2, 3))
