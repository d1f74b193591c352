// f32: weights as they are, one depth per step.
#include "formats/common/panels.hpp"
#include "formats/kernels.hpp"

namespace fastffn {

namespace {

std::int64_t matrix_bytes(const PackedHeader& header) noexcept {
    return divide_up(header.out_features, panel_columns) * padded_steps(header.in_features, 1) * 64;
}

Status pack(const PlainMatrix& matrix, const PackJob& job) {
    const std::int64_t panel_bytes = padded_steps(matrix.in_features, 1) * 64;
    return for_each_row(matrix, job.which, [&](std::int64_t row, const float* weights) {
        std::byte* column = job.payload + row / panel_columns * panel_bytes + row % panel_columns * 4;
        for (std::int64_t k = 0; k < matrix.in_features; ++k) std::memcpy(column + k * 64, weights + k, 4);
    });
}

void unpack_row(const MatrixView& matrix, std::int64_t row, float* weights) noexcept {
    const std::int64_t panel_bytes = padded_steps(matrix.in_features, 1) * 64;
    const std::byte* column = matrix.payload + row / panel_columns * panel_bytes + row % panel_columns * 4;
    for (std::int64_t k = 0; k < matrix.in_features; ++k) std::memcpy(weights + k, column + k * 64, 4);
}

}  // namespace

const FormatDefinition f32_format = {
    Format::f32,
    "f32",
    matrix_bytes,
    pack,
    unpack_row,
    {&ref::f32_kernels, FASTFFN_X86_KERNELS(&avx2::f32_kernels, &avx512::f32_kernels, nullptr, nullptr, nullptr)},
};

}  // namespace fastffn
