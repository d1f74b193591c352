// sparse24 in plain loops: specification, fallback, and what the tests compare with. Rows as the dense formats prepare them.
#include "formats/common/float_ref.hpp"
#include "formats/int8/rows_ref.hpp"
#include "formats/kernels.hpp"
#include "formats/sparse24/layout.hpp"

namespace fastffn::ref {

namespace {

// kept(group, position in the group, weight) for the two kept weights of every group of one column.
template <Sparse24Values values, class Kept>
void for_each_kept(const std::byte* panel, std::int64_t depth, std::int64_t column, Kept kept) {
    const Sparse24Layout layout(values);
    for (std::int64_t group = 0; group * 4 < depth; ++group) {
        const std::uint32_t code = read_code(panel, code_at(layout, group, column));
        const std::byte* first = panel + value_offset(values, group, column);
        kept(group * 4 + (code & 3), first);
        kept(group * 4 + (code >> 2), first + second_offset(values));
    }
}

template <Sparse24Values values>
void multiply_float(const MultiplyArgs& a) noexcept {
    constexpr DType dtype = values == Sparse24Values::bf16  ? DType::bf16
                            : values == Sparse24Values::f16 ? DType::f16
                                                            : DType::f32;
    const std::int64_t depth = a.matrix.in_features;
    const Sparse24Payload payload = sparse24_payload(a.matrix, values);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* x = a.prepared + (a.row0 + r) * depth * 4;
        for (std::int64_t c = 0; c < a.panels * panel_columns; ++c) {
            const std::byte* panel = payload.panels + (a.first_panel + c / panel_columns) * payload.panel_bytes;
            float sum = 0;
            for_each_kept<values>(panel, depth, c % panel_columns, [&](std::int64_t k, const std::byte* weight) {
                // Past the end of a row that is no multiple of 4 lie zeros.
                sum += (k < depth ? load_f32(x + k * 4, DType::f32) : 0.0f) * load_f32(weight, dtype);
            });
            a.tile[r * a.tile_stride + c] = sum;
        }
    }
}

void multiply_int8(const MultiplyArgs& a) noexcept {
    const std::int64_t depth = a.matrix.in_features;
    const Sparse24Payload payload = sparse24_payload(a.matrix, Sparse24Values::int8);
    const std::byte* scales = a.prepared + int8_ref_scales_offset(a.total_rows, depth);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* x = a.prepared + (a.row0 + r) * depth;
        const float row_scale = load_f32(scales + (a.row0 + r) * 4, DType::f32);
        for (std::int64_t c = 0; c < a.panels * panel_columns; ++c) {
            const std::int64_t column = a.first_panel * panel_columns + c;
            const std::byte* panel = payload.panels + column / panel_columns * payload.panel_bytes;
            std::uint32_t sum = 0;  // wraps like the vector instructions where a forged payload overflows
            for_each_kept<Sparse24Values::int8>(
                panel, depth, c % panel_columns, [&](std::int64_t k, const std::byte* weight) {
                    const std::int32_t q = k < depth ? static_cast<std::int8_t>(x[k]) : 0;
                    sum += static_cast<std::uint32_t>(q * static_cast<std::int8_t>(*weight));
                });
            a.tile[r * a.tile_stride + c] = static_cast<float>(static_cast<std::int32_t>(sum)) *
                                            (row_scale * load_f32(payload.scales + column * 4, DType::f32));
        }
    }
}

}  // namespace

const FormatKernels sparse24_bf16_kernels = {
    "sparse24/ref",
    1,
    4,
    false,
    false,
    4,
    float_ref_prepared_bytes,
    float_ref_prepare<true>,
    multiply_float<Sparse24Values::bf16>,
};
const FormatKernels sparse24_f16_kernels = {
    "sparse24/ref",
    1,
    4,
    false,
    false,
    4,
    float_ref_prepared_bytes,
    float_ref_prepare<false>,
    multiply_float<Sparse24Values::f16>,
};
const FormatKernels sparse24_f32_kernels = {
    "sparse24/ref",
    1,
    4,
    false,
    false,
    4,
    float_ref_prepared_bytes,
    float_ref_prepare<false>,
    multiply_float<Sparse24Values::f32>,
};
const FormatKernels sparse24_int8_kernels = {
    "sparse24/ref", 1, 4, true, false, 1, int8_ref_prepared_bytes, int8_ref_prepare, multiply_int8,
};

}  // namespace fastffn::ref
