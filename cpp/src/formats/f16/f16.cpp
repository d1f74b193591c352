// f16: IEEE half-precision weights, one depth per step, widened to f32 as they are read.
#include <cmath>

#include "formats/common/panels.hpp"
#include "formats/kernels.hpp"

namespace fastffn {

namespace {

std::int64_t matrix_bytes(const PackedHeader& header) noexcept {
    return divide_up(header.out_features, panel_columns) * padded_steps(header.in_features, 1) * 32;
}

Status pack(const PlainMatrix& matrix, const PackJob& job) {
    const std::string& which = job.which;
    LowestRow too_large;
    const std::int64_t panel_bytes = padded_steps(matrix.in_features, 1) * 32;
    Status status = for_each_row(matrix, which, [&](std::int64_t row, const float* weights) {
        std::byte* column = job.payload + row / panel_columns * panel_bytes + row % panel_columns * 2;
        for (std::int64_t k = 0; k < matrix.in_features; ++k) {
            // 65520 is halfway between the largest f16, 65504, and the next: from there on rounding gives infinity.
            if (std::isfinite(weights[k]) && std::fabs(weights[k]) >= 65520.0f) too_large.note(row);
            store_f32(column + k * 32, DType::f16, weights[k]);
        }
    });
    if (status.ok() && too_large.found())
        return {StatusCode::invalid_argument, which + ": row " + std::to_string(too_large.row()) +
                                                  " of w holds a weight beyond 65504, the largest f16"};
    return status;
}

void unpack_row(const MatrixView& matrix, std::int64_t row, float* weights) noexcept {
    const std::int64_t panel_bytes = padded_steps(matrix.in_features, 1) * 32;
    const std::byte* column = matrix.payload + row / panel_columns * panel_bytes + row % panel_columns * 2;
    for (std::int64_t k = 0; k < matrix.in_features; ++k) weights[k] = load_f32(column + k * 32, DType::f16);
}

}  // namespace

const FormatDefinition f16_format = {
    Format::f16,
    "f16",
    matrix_bytes,
    pack,
    unpack_row,
    {&ref::f16_kernels, FASTFFN_X86_KERNELS(&avx2::f16_kernels, &avx512::f16_kernels, nullptr, nullptr, nullptr)},
};

}  // namespace fastffn
