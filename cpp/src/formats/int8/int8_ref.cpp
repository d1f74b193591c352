// int8 in plain loops; rows_ref.hpp prepares the rows.
//
//   y[o] = float(Σ_k q[k] · w[o][k]) · (scale · scale_w[o])
#include "formats/int8/rows_ref.hpp"
#include "formats/kernels.hpp"

namespace fastffn::ref {

namespace {

void multiply(const MultiplyArgs& a) noexcept {
    const std::int64_t depth = a.matrix.in_features;
    const Int8Layout layout = int8_layout(a.matrix.payload, a.matrix.out_features, depth);
    const std::byte* scales = a.prepared + int8_ref_scales_offset(a.total_rows, depth);
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

const FormatKernels int8_kernels = {"int8/ref",       1,       4, true, false, 1, int8_ref_prepared_bytes,
                                    int8_ref_prepare, multiply};

}  // namespace fastffn::ref
