"""SparseGPT at 2:4: Frantar and Alistarh 2023, arXiv:2301.00774.

Minimises ‖(W - Ŵ)Xᵀ‖² column by column. With H = XᵀX + λI and the upper Cholesky factor U of H⁻¹ (H⁻¹ = UᵀU), pruning
weight k of a row costs w_k² / U_kk², and the best answer of the weights to the right of it is

    w_j -= (w_k / U_kk) · U_kj      for all j > k

so at the first column of every group the two weights with the lowest cost are chosen, and each takes its share from the
columns behind it. Columns go in groups within blocks: what each does to the columns behind it is one matrix product.

H⁻¹ is never formed: if J reverses the order of columns and JHJ = LLᵀ, then H = (JLJ)(JLJ)ᵀ with JLJ upper triangular, and
U = (JLJ)⁻¹. One Cholesky and one triangular inverse, both in place: 8·K² bytes, 0.97 GB for K = 11008.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ._arrays import Floats, Mask
from ._groups import keep_two

_F64 = npt.NDArray[np.float64]
_PANEL = 256  # columns per step of the factorisations: NumPy's own below that, matrix products above


def prune_sparsegpt(w: Floats, gram: _F64, damping: float, block: int) -> tuple[Floats, Mask]:
    """Pruned and updated weights and the mask of those kept: w [R, K], gram [K, K] (overwritten) → [R, K] each."""
    rows, columns = w.shape
    unused = np.diagonal(gram) <= 0
    factor = inverse_factor(gram, damping)
    # Columns as rows: everything below reads and writes whole columns of w.
    work = np.array(w.T, np.float64 if w.dtype == np.float64 else np.float32, order="C")
    upper = factor.astype(work.dtype)
    diagonal = np.diagonal(factor).astype(work.dtype)
    kept = np.empty((columns, rows), np.bool_)
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        errors = np.zeros((end - begin, rows), work.dtype)
        for first in range(begin, end, 4):
            last = min(first + 4, end)
            group = work[first:last]
            cost = np.abs(group / diagonal[first:last, None])  # its root: squares of small weights would vanish
            # A column without any input costs nothing, whatever its damped diagonal says.
            cost[unused[first:last]] = 0
            kept[first:last] = keep_two(cost.T).T
            for column in range(first, last):
                lost = errors[column - begin]
                np.divide(work[column], diagonal[column], out=lost)
                lost *= ~kept[column]
                work[column:last] -= upper[column, column:last, None] * lost
                np.copyto(work[column], 0, where=~kept[column])
            # What a group does to the columns behind it: in this block now, in the others once per block.
            work[last:end] -= upper[first:last, last:end].T @ errors[first - begin : last - begin]
        if end < columns:
            work[end:] -= upper[begin:end, end:].T @ errors
    return np.ascontiguousarray(work.T), np.ascontiguousarray(kept.T)


def inverse_factor(gram: _F64, damping: float) -> _F64:
    """U with (gram + λI)⁻¹ = UᵀU, λ = damping · mean of the diagonal; gram is overwritten.

    Raises:
        ValueError: not positive definite even so: damping is too small for so few inputs.
    """
    size = gram.shape[0]
    diagonal = np.einsum("kk->k", gram)
    mean = float(diagonal.mean())
    diagonal += damping * mean if mean > 0 else 1.0
    diagonal[diagonal <= 0] = mean if mean > 0 else 1.0  # columns without input, when damping is 0
    reverse_in_place(gram)
    try:
        cholesky_in_place(gram)
    except np.linalg.LinAlgError:
        raise ValueError(
            f"prune24: the inputs' products [{size}, {size}] are not positive definite with damping {damping:g};"
            " give more inputs, or a larger damping"
        ) from None
    invert_lower_in_place(gram)
    reverse_in_place(gram)
    return gram


def reverse_in_place(a: _F64) -> None:
    """JaJ in the place of a contiguous a: both dimensions run backwards. (A view would keep matrix products off BLAS.)"""
    flat, chunk = a.reshape(-1), 1 << 20
    for begin in range(0, flat.size // 2, chunk):
        end = min(begin + chunk, flat.size // 2)
        front = flat[begin:end].copy()
        flat[begin:end] = flat[flat.size - end : flat.size - begin][::-1]
        flat[flat.size - end : flat.size - begin] = front[::-1]


def cholesky_in_place(a: _F64) -> None:
    """The lower Cholesky factor of a symmetric matrix in its place; zeros above the diagonal."""
    size = a.shape[0]
    for begin in range(0, size, _PANEL):
        end = min(begin + _PANEL, size)
        a[begin:end, begin:end] = np.linalg.cholesky(a[begin:end, begin:end])
        a[begin:end, end:] = 0
        if end == size:
            break
        panel = a[end:, begin:end]
        panel[:] = panel @ np.linalg.inv(a[begin:end, begin:end]).T
        for at in range(end, size, _PANEL):  # the lower half of the rest only
            stop = min(at + _PANEL, size)
            a[at:, at:stop] -= a[at:, begin:end] @ a[at:stop, begin:end].T


def invert_lower_in_place(a: _F64) -> None:
    """The inverse of a lower triangular matrix in its place."""
    size = a.shape[0]
    for begin in range(0, size, _PANEL):
        end = min(begin + _PANEL, size)
        # The rows above are inverted already. This row of blocks is [L | D]: its inverse is [-D⁻¹·L·(above)⁻¹ | D⁻¹].
        inverse = np.linalg.inv(a[begin:end, begin:end])
        inverse[np.triu_indices(end - begin, 1)] = 0
        a[begin:end, begin:end] = inverse
        if begin:
            a[begin:end, :begin] = -inverse @ (a[begin:end, :begin] @ a[:begin, :begin])
