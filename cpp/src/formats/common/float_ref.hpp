// Plain loops for the formats whose products are summed in f32: specification, fallback, and what the tests compare with.
// A format supplies how a weight is read and whether activations are rounded to bf16.
#pragma once

#include "core/convert.hpp"
#include "core/kernel.hpp"

namespace fastffn {
namespace {

inline std::int64_t float_ref_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const std::int64_t depth = matrix.in_features;
    return round_up(total_rows * depth * 4, 64);
}

template <bool to_bf16>
void float_ref_prepare(const PrepareArgs& a) noexcept {
    const std::int64_t bytes = element_bytes(a.dtype);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        std::byte* row = a.prepared + ((a.row0 + r) * a.depth + a.col0) * 4;
        for (std::int64_t c = 0; c < a.cols; ++c) {
            const float x = load_f32(a.src + r * a.src_stride + c * bytes, a.dtype);
            store_f32(row + c * 4, DType::f32, to_bf16 ? bf16_to_f32(f32_to_bf16(x)) : x);
        }
    }
}

// weight_at(panel payload, depth index, column) -> float
template <class WeightAt>
void float_ref_multiply(const MultiplyArgs& a, std::int64_t panel_bytes, WeightAt weight_at) noexcept {
    const std::int64_t depth = a.matrix.in_features;
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* x = a.prepared + (a.row0 + r) * depth * 4;
        for (std::int64_t p = 0; p < a.panels; ++p) {
            const std::byte* panel = a.matrix.payload + (a.first_panel + p) * panel_bytes;
            for (std::int64_t c = 0; c < panel_columns; ++c) {
                float sum = 0;
                for (std::int64_t k = 0; k < depth; ++k)
                    sum += load_f32(x + k * 4, DType::f32) * weight_at(panel, k, c);
                a.tile[r * a.tile_stride + p * panel_columns + c] = sum;
            }
        }
    }
}

}  // namespace
}  // namespace fastffn
