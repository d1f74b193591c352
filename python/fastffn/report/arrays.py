"""Array types of the report."""

from fastffn._files.arrays import F32, F64, I64, U8, U16, AnyArray, bf16_to_f32, f32_to_bf16

__all__ = ["F32", "F64", "I64", "U8", "U16", "AnyArray", "bf16_to_f32", "f32_to_bf16"]
