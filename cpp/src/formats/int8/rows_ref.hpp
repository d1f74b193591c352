// Rows for the plain int8 kernels: [total_rows, depth] int8, then one f32 scale per row.
//
//   scale = max_k |x[k]| / 127,  q[k] = x[k] / scale rounded to nearest even
//
// A row whose largest magnitude is below int8_smallest_row counts as zero: 127 / largest would overflow.
// A row that holds NaN or infinity gets q = 0 and scale NaN: its outputs become NaN, and no other row's do.
#pragma once

#include <cmath>

#include "core/convert.hpp"
#include "formats/int8/layout.hpp"

namespace fastffn {
namespace {

inline std::int64_t int8_ref_scales_offset(std::int64_t total_rows, std::int64_t depth) {
    return round_up(total_rows * depth, 64);
}

inline std::int64_t int8_ref_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const std::int64_t depth = matrix.in_features;
    return int8_ref_scales_offset(total_rows, depth) + round_up(total_rows * 4, 64);
}

inline void int8_ref_prepare(const PrepareArgs& a) noexcept {
    const std::int64_t bytes = element_bytes(a.dtype);
    std::byte* scales = a.prepared + int8_ref_scales_offset(a.total_rows, a.depth);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* src = a.src + r * a.src_stride;
        float largest = 0;
        bool finite = true;
        for (std::int64_t k = 0; k < a.depth; ++k) {
            const float magnitude = std::fabs(load_f32(src + k * bytes, a.dtype));
            finite = finite && std::isfinite(magnitude);
            largest = magnitude > largest ? magnitude : largest;
        }
        const float inverse = finite && largest >= int8_smallest_row ? 127.0f / largest : 0.0f;
        const float scale = !finite ? std::nanf("") : inverse > 0 ? largest / 127.0f : 0.0f;
        for (std::int64_t k = 0; k < a.depth; ++k) {
            float q = 0;
            if (inverse > 0) q = std::nearbyint(load_f32(src + k * bytes, a.dtype) * inverse);
            q = std::fmin(std::fmax(q, -127.0f), 127.0f);
            a.prepared[(a.row0 + r) * a.depth + k] = static_cast<std::byte>(static_cast<std::int8_t>(q));
        }
        store_f32(scales + (a.row0 + r) * 4, DType::f32, scale);
    }
}

}  // namespace
}  // namespace fastffn
