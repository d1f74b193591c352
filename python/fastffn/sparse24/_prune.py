"""prune24: dense weights → 2:4 sparse ones, by four methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from ._arrays import Floats, Source, read
from ._calibration import Calibration24, check_finite, gram_of, norms_of
from ._groups import keep_two, mask_of
from ._sparsegpt import prune_sparsegpt

Array = TypeVar("Array")

METHODS = ("magnitude", "wanda", "sparsegpt", "transposable")


def prune24(
    w: Array, method: str = "magnitude", calibration: Any = None, *, damping: float = 0.01, block: int = 128
) -> Array:
    """Weights of which every group of four along a row keeps two, and has zeros in place of the others.

    ================  =============================================================================================
    "magnitude"       keeps the largest |w|
    "wanda"           keeps the largest |w|·‖x_k‖₂, the norm of column k of the inputs (arXiv:2306.11695)
    "sparsegpt"       keeps the largest w² / [H⁻¹]_kk, H = XᵀX + λI, column by column, and changes the weights that
                      stay so that the outputs change least (arXiv:2301.00774)
    "transposable"    keeps two in every row and two in every column of each 4×4 block: of the 90 such patterns the one
                      with the largest Σ|w|, searched exactly (arXiv:2102.08124). The transposed matrix is 2:4 sparse
                      too, as the backward pass of training wants it; without that need another method keeps more
    ================  =============================================================================================

    Of equal scores the one with the lower index stays. The last group of a row whose length is no multiple of four keeps
    two as well. Pruning without training afterwards costs quality: measure it, as ``python -m fastffn report`` does.

    Args:
        w: [out_features, in_features], or a stack [count, out_features, in_features]; f32, f64, f16 or bf16, NumPy or
            torch, any strides. It is not changed.
        method: one of the above.
        calibration: for "wanda" and "sparsegpt". Inputs of this layer [..., in_features] (a few thousand rows of real
            ones, not those that quality is measured on), or a :class:`fastffn.sparse24.Calibration24`; "wanda" also takes
            the norms [in_features]. For a stack: one for all matrices, or a list with one per matrix.
        damping: for "sparsegpt": λ over the mean of the diagonal of XᵀX.
        block: for "sparsegpt": columns per block, a multiple of 4. Changes speed, not the result but for rounding.

    Returns:
        An array of w's kind, dtype and shape for :func:`fastffn.pack` with ``"sparse24"``.

    Raises:
        ValueError: an unknown method; shapes that do not fit; NaN or infinity in w or calibration, which cannot be
            ranked; calibration missing, or given to a method that takes none.
        TypeError: no array, or another dtype.
    """
    if method not in METHODS:
        raise ValueError(f"prune24: method is {method!r}, expected {', '.join(METHODS)}")
    source = read("prune24", "w", w, dims=(2, 3))
    weights = source.floats()
    check_finite("prune24", "w", weights)
    needed = method in ("wanda", "sparsegpt")
    if needed and calibration is None:
        raise ValueError(
            f"prune24: method {method!r} needs calibration: inputs of the layer [..., {weights.shape[-1]}]"
        )
    if not needed and calibration is not None:
        raise ValueError(f"prune24: method {method!r} takes no calibration")
    if method in ("magnitude", "transposable"):
        result: Array = masked(source, mask_of(weights, method == "transposable"))
        return result
    if damping < 0 or not np.isfinite(damping):
        raise ValueError(f"prune24: damping is {damping:g}, expected 0 or more")
    if block < 4 or block % 4:
        raise ValueError(f"prune24: block is {block}, expected a multiple of 4")
    stack = weights.reshape(-1, *weights.shape[-2:])
    if method == "wanda":
        mask = np.empty(stack.shape, np.bool_)
        for index, one in enumerate(_per_matrix(calibration, stack)):
            mask[index] = keep_two(np.abs(stack[index]) * norms_of("prune24", one, stack.shape[-1]))
        result = masked(source, mask.reshape(weights.shape))
        return result
    pruned = np.empty(stack.shape, stack.dtype)
    for index, one in enumerate(_per_matrix(calibration, stack)):
        gram = gram_of("prune24", one, stack.shape[-1])
        pruned[index] = prune_sparsegpt(stack[index], gram, float(damping), int(block))[0]
    result = source.from_floats(pruned.reshape(weights.shape))
    return result


def masked(source: Source, mask: Any) -> Any:
    """The array with plain zeros where the mask is False; every other bit as it was."""
    bits = source.bits()
    return source.from_bits(np.where(mask, bits, np.zeros((), bits.dtype)))


def _per_matrix(calibration: Any, stack: Floats) -> Sequence[Any]:
    count = stack.shape[0]
    if not isinstance(calibration, (list, tuple)):
        return [calibration] * count
    if len(calibration) != count or isinstance(calibration[0], (int, float)):
        raise ValueError(
            f"prune24: calibration is a list of {len(calibration)}, expected an array, or one for each of {count} matrices"
        )
    return calibration


__all__ = ["METHODS", "Calibration24", "prune24"]
