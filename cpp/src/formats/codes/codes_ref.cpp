// ternary and int4 in plain loops: the specification of both.
//
//   hadamard modes: x is H · x from here on (core/hadamard.hpp)
//   q[k] = clamp(nearest_even(x[k] · inverse), lowest, highest), scale_x: see RowCode in layout.hpp
//   one scale per column:  y[o] = float(Σ_k q[k] · (code[o][k] - zero)) · (scale_x · scale[o])
//   groups:                y[o] = scale_x · Σ_g scale[o][g] · float(Σ_{k in g} q[k] · (code[o][k] - zero[o][g]))
//                          and with minima: Σ_g scale[o][g] · float(Σ q · code) + minimum[o][g] · float(Σ q)
#include <cmath>

#include "core/convert.hpp"
#include "formats/codes/layout.hpp"
#include "formats/codes/transformed_ref.hpp"
#include "formats/kernels.hpp"

namespace fastffn::ref {

namespace {

template <int bits>
std::int64_t prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const CodesLayout<bits> layout(matrix);
    return CodesRows(total_rows, layout.padded_depth, layout.groups).bytes;
}

template <int bits>
void prepare_rows(const PrepareArgs& a) {
    const CodesLayout<bits> layout(*a.matrix);
    const CodesRows rows(a.total_rows, layout.padded_depth, layout.groups);
    const std::int64_t bytes = element_bytes(a.dtype);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* src = a.src + r * a.src_stride;
        std::byte* dst = a.prepared + (a.row0 + r) * rows.stride;
        float largest = 0, lanes[16] = {};  // sums of magnitudes in the order of rows.hpp
        bool finite = true;
        for (std::int64_t k = 0; k < a.depth; ++k) {
            const float magnitude = std::fabs(load_f32(src + k * bytes, a.dtype));
            finite = finite && std::isfinite(magnitude);
            largest = magnitude > largest ? magnitude : largest;
            lanes[k % 16] += magnitude;
        }
        for (int half = 8; half >= 1; half /= 2)
            for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
        const RowCode code = row_code_of<bits>(a.matrix->flags, largest, lanes[0], a.depth, finite);
        for (std::int64_t k = 0; k < layout.padded_depth; ++k) {
            float q = 0;
            if (finite && k < a.depth) {
                q = load_f32(src + k * bytes, a.dtype) * code.inverse;
                q = std::nearbyint(std::fmin(std::fmax(q, code.lowest), code.highest));
            }
            dst[k] = static_cast<std::byte>(static_cast<std::int8_t>(q));
        }
        store_f32(a.prepared + rows.scales + (a.row0 + r) * 4, DType::f32, code.scale);
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            const std::int64_t begin = g * layout.group,
                               end = layout.group ? begin + layout.group : layout.padded_depth;
            std::int32_t sum = 0;
            for (std::int64_t k = begin; k < end; ++k) sum += static_cast<std::int8_t>(dst[k]);
            std::memcpy(a.prepared + rows.sums + ((a.row0 + r) * layout.groups + g) * 4, &sum, 4);
        }
    }
}

template <int bits>
void prepare(const PrepareArgs& a) noexcept {
    prepare_transformed(a, prepare_rows<bits>);
}

template <int bits>
void multiply(const MultiplyArgs& a) noexcept {
    using Traits = CodeTraits<bits>;
    const CodesLayout<bits> layout(a.matrix);
    const CodesRows rows(a.total_rows, layout.padded_depth, layout.groups);
    const std::uint32_t zeros_kind = a.matrix.flags & codes_zeros_mask;
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* x = a.prepared + (a.row0 + r) * rows.stride;
        const float row_scale = load_f32(a.prepared + rows.scales + (a.row0 + r) * 4, DType::f32);
        for (std::int64_t c = 0; c < a.panels * panel_columns; ++c) {
            const std::int64_t column = a.first_panel * panel_columns + c;
            float total = 0;
            for (std::int64_t g = 0; g < layout.groups; ++g) {
                const std::int64_t begin = g * layout.group;
                const std::int64_t end = layout.group ? begin + layout.group : layout.padded_depth;
                std::uint32_t sum = 0;  // wraps like the vector instructions where a forged payload overflows
                for (std::int64_t k = begin; k < end; ++k) {
                    const int code =
                        static_cast<int>(layout.panels[layout.code_byte(column, k)]) >> layout.code_shift(column, k) &
                        Traits::mask;
                    sum += static_cast<std::uint32_t>(static_cast<std::int8_t>(x[k]) * code);
                }
                std::int32_t row_sum;
                std::memcpy(&row_sum, a.prepared + rows.sums + ((a.row0 + r) * layout.groups + g) * 4, 4);
                const std::int64_t entry = layout.entry(column, begin);
                const int zero = zeros_kind == codes_minima        ? 0
                                 : zeros_kind == codes_zero_points ? static_cast<int>(layout.zeros[entry])
                                                                   : Traits::zero;
                const auto exact = static_cast<float>(static_cast<std::int32_t>(
                    sum - static_cast<std::uint32_t>(zero) * static_cast<std::uint32_t>(row_sum)));
                if (!layout.group) {
                    total = exact * (row_scale * load_f32(layout.scales + column * 4, DType::f32));
                    break;
                }
                total = std::fma(exact, load_f32(layout.scales + entry * 2, DType::f16), total);
                if (zeros_kind == codes_minima)
                    total =
                        std::fma(static_cast<float>(row_sum), load_f32(layout.zeros + entry * 2, DType::f16), total);
            }
            a.tile[r * a.tile_stride + c] = layout.group ? total * row_scale : total;
        }
    }
}

}  // namespace

const FormatKernels ternary_kernels = {
    "ternary/ref", 1, 4, true, false, 1, prepared_bytes<2>, prepare<2>, multiply<2>,
};
const FormatKernels int4_kernels = {
    "int4/ref", 1, 4, true, false, 1, prepared_bytes<4>, prepare<4>, multiply<4>,
};

}  // namespace fastffn::ref
