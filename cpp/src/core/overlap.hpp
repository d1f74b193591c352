// Whether arrays share memory.
#pragma once

#include "fastffn/tensor.hpp"

namespace fastffn {

// True when the memory ranges that two arrays span have a byte in common.
bool may_overlap(const TensorView& a, const TensorView& b) noexcept;
bool may_overlap(const TensorView& a, const void* data, std::int64_t bytes) noexcept;

}  // namespace fastffn
