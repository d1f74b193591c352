"""Array types, and bf16 in NumPy (which has no such dtype: the bits travel as uint16)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int8]
F16 = npt.NDArray[np.float16]
U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
I64 = npt.NDArray[np.int64]
AnyArray = npt.NDArray[Any]


def bf16_to_f32(bits: U16) -> F32:
    """Widen bf16 bits (uint16, any shape) to f32, exactly."""
    wide: F32 = (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return wide


def f32_to_bf16(values: F32) -> U16:
    """Round f32 to bf16 bits (uint16), to nearest, ties to even; every NaN stays a NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    # The largest finite values carry into infinity here, as rounding to nearest asks for.
    rounded = ((bits + (np.uint32(0x7FFF) + odd)) >> np.uint32(16)).astype(np.uint16)
    # A NaN whose payload sits in the low half would otherwise round to infinity, or carry into the sign.
    quiet = ((bits >> np.uint32(16)) | np.uint32(0x0040)).astype(np.uint16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    out: U16 = np.where(nan, quiet, rounded).astype(np.uint16)
    return out
