// int8 in plain loops. Prepared rows: [total_rows, depth] int8, then one f32 scale per row.
//
//   scale = max_k |x[k]| / 127,  q[k] = x[k] / scale rounded to nearest even
//   y[o] = float(Σ_k q[k] · w[o][k]) · (scale · scale_w[o])
//
// A row whose largest magnitude is below int8_smallest_row counts as zero: 127 / largest would overflow.
// A row that holds NaN or infinity gets q = 0 and scale NaN: its outputs become NaN, and no other row's do.
#include <cmath>

#include "core/convert.hpp"
#include "formats/int8/layout.hpp"
#include "formats/kernels.hpp"

namespace fastffn::ref {

namespace {

std::int64_t scales_offset(std::int64_t total_rows, std::int64_t depth) { return round_up(total_rows * depth, 64); }

std::int64_t prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const std::int64_t depth = matrix.in_features;
    return scales_offset(total_rows, depth) + round_up(total_rows * 4, 64);
}

void prepare(const PrepareArgs& a) noexcept {
    const std::int64_t bytes = element_bytes(a.dtype);
    std::byte* scales = a.prepared + scales_offset(a.total_rows, a.depth);
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

void multiply(const MultiplyArgs& a) noexcept {
    const std::int64_t depth = a.matrix.in_features;
    const Int8Layout layout = int8_layout(a.matrix.payload, a.matrix.out_features, depth);
    const std::byte* scales = a.prepared + scales_offset(a.total_rows, depth);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* x = a.prepared + (a.row0 + r) * depth;
        const float row_scale = load_f32(scales + (a.row0 + r) * 4, DType::f32);
        for (std::int64_t c = 0; c < a.panels * panel_columns; ++c) {
            const std::int64_t column = a.first_panel * panel_columns + c;
            const std::byte* weights =
                layout.panels + column / panel_columns * layout.panel_bytes + column % panel_columns * 4;
            std::uint32_t sum = 0;  // wraps like the vector instructions where a forged payload overflows
            for (std::int64_t k = 0; k < depth; ++k)
                sum += static_cast<std::uint32_t>(static_cast<std::int32_t>(static_cast<std::int8_t>(x[k])) *
                                                  static_cast<std::int8_t>(weights[k / 4 * 64 + k % 4]));
            a.tile[r * a.tile_stride + c] = static_cast<float>(static_cast<std::int32_t>(sum)) *
                                            (row_scale * load_f32(layout.scales + column * 4, DType::f32));
        }
    }
}

}  // namespace

const FormatKernels int8_kernels = {"int8/ref", 1, 4, true, false, 1, prepared_bytes, prepare, multiply};

}  // namespace fastffn::ref
