// bf16: weights rounded to nearest even, pairs of depths per step. Activations are rounded to bf16 too, as the
// instructions VDPBF16PS and TDPBF16PS take them, so that every instruction set computes the same layer.
#include "formats/common/panels.hpp"
#include "formats/kernels.hpp"

namespace fastffn {

namespace {

std::int64_t matrix_bytes(std::int64_t out_features, std::int64_t in_features) noexcept {
    return divide_up(out_features, panel_columns) * padded_steps(in_features, 2) * 64;
}

std::int64_t weight_offset(std::int64_t k) { return k / 2 * 64 + k % 2 * 2; }

Status pack(const PlainMatrix& matrix, std::byte* payload, const std::string&) {
    const std::int64_t panel_bytes = padded_steps(matrix.in_features, 2) * 64;
    for_each_row(matrix, [&](std::int64_t row, const float* weights) {
        std::byte* column = payload + row / panel_columns * panel_bytes + row % panel_columns * 4;
        for (std::int64_t k = 0; k < matrix.in_features; ++k)
            store_f32(column + weight_offset(k), DType::bf16, weights[k]);
    });
    return {};
}

void unpack_row(const MatrixView& matrix, std::int64_t row, float* weights) noexcept {
    const std::int64_t panel_bytes = padded_steps(matrix.in_features, 2) * 64;
    const std::byte* column = matrix.payload + row / panel_columns * panel_bytes + row % panel_columns * 4;
    for (std::int64_t k = 0; k < matrix.in_features; ++k) weights[k] = load_f32(column + weight_offset(k), DType::bf16);
}

}  // namespace

const FormatDefinition bf16_format = {
    Format::bf16,
    "bf16",
    matrix_bytes,
    pack,
    unpack_row,
    {&ref::bf16_kernels, FASTFFN_X86_KERNELS(&avx2::bf16_kernels, &avx512::bf16_kernels, nullptr,
                                             &avx512bf16::bf16_kernels, &amx::bf16_kernels)},
};

}  // namespace fastffn
