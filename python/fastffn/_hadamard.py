"""Hadamard transforms and the quantisation of activations, alone."""

from __future__ import annotations

import operator
from typing import Any, TypeVar

from fastffn import _core

Array = TypeVar("Array")


def hadamard(
    x: Array,
    mode: str = "pow2",
    block: int | None = None,
    inverse: bool = False,
    out: Any = None,
    *,
    stream: Any = None,
    workspace: Any = None,
) -> Array:
    """An orthonormal Hadamard transform of the last dimension: y = H · x, entries ±1/√n, H · Hᵀ = I.

    It spreads outliers over a row, so that few bits hold what follows. Weights packed with ``hadamard=`` apply it to
    activations by themselves.

    Args:
        x: [..., n], f32, f16 or bf16; the last dimension contiguous, other strides free but not negative.
        mode: "pow2": n = 2^m, Sylvester's matrix in its natural order (H-BitLinear, arXiv:2504.18415).
            "kron": n = K · 2^m, H_K ⊗ H_2^m: x seen as (K, 2^m), butterflies on the fast axis, H_K on the slow one
            (QuaRot, arXiv:2404.00456); K is 1, 12, 20, 28, 36, 52, 60, 108, 140, 156 or 172. The matrices are built by
            Paley's and Goethals and Seidel's constructions; those of other libraries differ in order and sign.
            "block": "pow2" in blocks of the largest power of two that divides n, or of ``block``: 6912 is 27 blocks of 256.
            "none": x itself.
        block: for mode "block" only: a power of two that divides n.
        inverse: Hᵀ · x instead, which undoes it. "pow2" and "block" are their own inverses, "kron" is not.
        out: where to write y: x's shape, f32, f16 or bf16; it may be x itself. None makes a new array.
        stream, workspace: for x on a CUDA device, as in :func:`fastffn.linear`. Rows of up to 16384 columns take no workspace; longer
            ones may. There ``out`` and x have rows of one stride, and H_K adds values that are rounded to 22 bits of the largest that
            it adds; all else has the CPU's bits. Never run on a GPU so far.

    Returns:
        y, x's shape: without ``out``, an array of x's kind and dtype. Computed in f32, with the same bits for any number of
        threads and on every instruction set.

    Raises:
        ValueError: n has no transform of this mode (the message says which modes work), and as :func:`fastffn.linear`.
    """
    _check_name("hadamard", "mode", mode)
    width = 0 if block is None else _width(block)
    result: Array = _core.hadamard(x, mode, width, bool(inverse), out, stream, workspace)
    return result


def quantize(x: Array, dtype: str = "int8", *, stream: Any = None, workspace: Any = None) -> tuple[Array, Array]:
    """Codes and scales of each row of x, x ≈ codes · scale, bit for bit as ternary weights see their activations.

    - "int8": γ = max(max|x|, 1e-5), codes = clamp(round(127 · x / γ), -127, 127), scale = γ / 127 (BitNet b1.58,
      arXiv:2402.17764).
    - "int4": β = mean|x|, codes = clamp(round(√7 · x / (β + 1e-5)), -8, 7), scale = β / √7 (BitNet a4.8, arXiv:2411.04965): it cuts
      off beyond 2.6 to 3 times the mean, on purpose.

    Rounding is to nearest, ties to even. A row with NaN or infinity gets codes 0 and the scale NaN.

    Args:
        x: [..., n], f32, f16 or bf16, n up to 133144; strides as in :func:`hadamard`.
        dtype: "int8" or "int4".
        stream, workspace: for x on a CUDA device, as in :func:`hadamard`; no workspace is needed. There the mean of "int4" is summed in
            another order, so that a code on an edge may fall the other way.

    Returns:
        (codes, scale): int8 [..., n] and f32 [...], of x's kind.
    """
    _check_name("quantize", "dtype", dtype)
    codes, scale = _core.quantize(x, dtype, stream, workspace)
    return codes, scale


def _check_name(operation: str, argument: str, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"{operation}: {argument} is {name!r}, expected a string")


def _width(block: Any) -> int:
    try:
        width = operator.index(block)
    except TypeError:
        raise TypeError(f"hadamard: block is {block!r}, expected a whole number") from None
    if width.bit_length() > 63:
        raise ValueError(f"hadamard: block is {width}, expected a power of two that divides x's last dimension")
    return width
