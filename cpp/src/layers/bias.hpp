// Biases of any float dtype as f32 blocks.
#pragma once

#include "core/convert.hpp"
#include "core/kernel.hpp"
#include "fastffn/tensor.hpp"

namespace fastffn {
namespace {

// A bias block as f32, zero past its end.
inline const float* load_bias(const TensorView* bias, std::int64_t col0, std::int64_t cols, float* buffer) {
    if (!bias) return nullptr;
    const std::int64_t bytes = element_bytes(bias->dtype), stride = bias->strides[0] * bytes;
    const std::byte* src = static_cast<const std::byte*>(bias->data) + col0 * stride;
    std::int64_t available = bias->shape[0] - col0;
    if (available > cols) available = cols;
    for (std::int64_t c = 0; c < available; ++c) buffer[c] = load_f32(src + c * stride, bias->dtype);
    for (std::int64_t c = available < 0 ? 0 : available; c < cols; ++c) buffer[c] = 0;
    return buffer;
}

}  // namespace
}  // namespace fastffn
