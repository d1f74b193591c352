// int4 with bf16 activations in plain loops: the specification.
//
//   y[o] = Σ_g scale[o][g] · Σ_{k in g} bf16(x[k]) · (code[o][k] - zero[o][g])
//   with minima:  Σ_g scale[o][g] · Σ bf16(x) · code + minimum[o][g] · Σ bf16(x)
//
// in f32. Rows are not scaled: NaN and infinity in a row give NaN or infinity in its outputs, and in no other row's.
#include <cmath>

#include "core/convert.hpp"
#include "formats/codes/layout.hpp"
#include "formats/codes/transformed_ref.hpp"
#include "formats/common/float_ref.hpp"
#include "formats/kernels.hpp"

namespace fastffn::ref {

namespace {

void prepare(const PrepareArgs& a) noexcept { prepare_transformed(a, float_ref_prepare<true>); }

void multiply(const MultiplyArgs& a) noexcept {
    const CodesLayout<4> layout(a.matrix);
    const std::uint32_t zeros_kind = a.matrix.flags & codes_zeros_mask;
    const std::int64_t depth = a.matrix.in_features;
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* x = a.prepared + (a.row0 + r) * depth * 4;
        for (std::int64_t c = 0; c < a.panels * panel_columns; ++c) {
            const std::int64_t column = a.first_panel * panel_columns + c;
            float total = 0;
            for (std::int64_t g = 0; g < layout.groups; ++g) {
                const std::int64_t begin = g * layout.group;
                const std::int64_t end = begin + layout.group < depth ? begin + layout.group : depth;
                const std::int64_t entry = layout.entry(column, begin);
                const int zero = zeros_kind == codes_minima        ? 0
                                 : zeros_kind == codes_zero_points ? static_cast<int>(layout.zeros[entry])
                                                                   : CodeTraits<4>::zero;
                float sum = 0, row_sum = 0;
                for (std::int64_t k = begin; k < end; ++k) {
                    const int code =
                        static_cast<int>(layout.panels[layout.code_byte(column, k)]) >> layout.code_shift(column, k) &
                        CodeTraits<4>::mask;
                    const float value = load_f32(x + k * 4, DType::f32);
                    sum += value * static_cast<float>(code - zero);
                    row_sum += value;
                }
                total = std::fma(sum, load_f32(layout.scales + entry * 2, DType::f16), total);
                if (zeros_kind == codes_minima)
                    total = std::fma(row_sum, load_f32(layout.zeros + entry * 2, DType::f16), total);
            }
            a.tile[r * a.tile_stride + c] = total;
        }
    }
}

}  // namespace

const FormatKernels int4_bf16_kernels = {
    "int4/ref", 1, 4, true, false, 4, float_ref_prepared_bytes, prepare, multiply,
};

}  // namespace fastffn::ref
