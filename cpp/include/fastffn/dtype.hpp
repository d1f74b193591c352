// DType: the element types of arrays.
#pragma once

#include <cstdint>

namespace fastffn {

enum class DType : std::uint8_t { f32 = 0, f16 = 1, bf16 = 2, u8 = 3, i8 = 4, i32 = 5, i64 = 6, f64 = 7 };

}  // namespace fastffn
