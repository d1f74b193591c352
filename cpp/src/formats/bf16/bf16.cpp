// bf16: weights rounded to nearest even, pairs of depths per step. Activations are rounded to bf16 too, as the
// instructions VDPBF16PS and TDPBF16PS take them, so that every instruction set computes the same layer (up to subnormals, which those instructions count as zero).
#include "formats/common/panels.hpp"
#include "formats/kernels.hpp"

namespace fastffn {

namespace {

std::int64_t matrix_bytes(const PackedHeader& header) noexcept {
    return divide_up(header.out_features, panel_columns) * padded_steps(header.in_features, 2) * 64;
}

std::int64_t weight_offset(std::int64_t k) { return k / 2 * 64 + k % 2 * 2; }

Status pack(const PlainMatrix& matrix, const PackJob& job) {
    const std::string& which = job.which;
    LowestRow too_large;
    const std::int64_t panel_bytes = padded_steps(matrix.in_features, 2) * 64;
    Status status = for_each_row(matrix, which, [&](std::int64_t row, const float* weights) {
        std::byte* column = job.payload + row / panel_columns * panel_bytes + row % panel_columns * 4;
        for (std::int64_t k = 0; k < matrix.in_features; ++k) {
            const std::uint16_t rounded = f32_to_bf16(weights[k]);
            if (std::isfinite(weights[k]) && !std::isfinite(bf16_to_f32(rounded))) too_large.note(row);
            std::memcpy(column + weight_offset(k), &rounded, 2);
        }
    });
    if (status.ok() && too_large.found())
        return {StatusCode::invalid_argument, which + ": row " + std::to_string(too_large.row()) +
                                                  " of w holds a weight beyond 3.39e38, the largest bf16"};
    return status;
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
