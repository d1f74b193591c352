// int8: symmetric per output row, quads of depths per step; see layout.hpp.
#include "formats/int8/layout.hpp"

#include "formats/common/panels.hpp"
#include "formats/int8/codes.hpp"
#include "formats/kernels.hpp"

namespace fastffn {

namespace {

std::int64_t matrix_bytes(const PackedHeader& header) noexcept {
    return divide_up(header.out_features, panel_columns) * (128 + int8_panel_bytes(header.in_features));
}

std::int64_t weight_offset(std::int64_t k) { return k / 4 * 64 + k % 4; }

Status pack(const PlainMatrix& matrix, const PackJob& job) {
    const std::string& which = job.which;
    if (matrix.in_features > int8_depth_limit)
        return {StatusCode::invalid_argument, which + ": w has in_features " + std::to_string(matrix.in_features) +
                                                  ", int8 takes at most " + std::to_string(int8_depth_limit) +
                                                  " (its int32 sums would overflow)"};
    const Int8Layout layout = int8_layout(job.payload, matrix.out_features, matrix.in_features);
    LowestRow not_finite;
    Status status = for_each_row(matrix, which, [&](std::int64_t row, const float* weights) {
        float scale = 0;
        if (!int8_scale(weights, matrix.in_features, &scale)) return not_finite.note(row);
        std::int32_t sum = 0;
        std::byte* column =
            const_cast<std::byte*>(layout.panels) + row / panel_columns * layout.panel_bytes + row % panel_columns * 4;
        for (std::int64_t k = 0; k < matrix.in_features; ++k) {
            const std::int8_t code = int8_code(weights[k], scale);
            column[weight_offset(k)] = static_cast<std::byte>(code);
            sum += code;
        }
        std::memcpy(const_cast<std::byte*>(layout.scales) + row * 4, &scale, 4);
        std::memcpy(const_cast<std::byte*>(layout.sums) + row * 4, &sum, 4);
    });
    if (status.ok() && not_finite.found())
        return {StatusCode::invalid_argument, which + ": row " + std::to_string(not_finite.row()) +
                                                  " of w holds NaN or infinity, which int8 cannot represent"};
    return status;
}

void unpack_row(const MatrixView& matrix, std::int64_t row, float* weights) noexcept {
    const Int8Layout layout = int8_layout(matrix.payload, matrix.out_features, matrix.in_features);
    const std::byte* column = layout.panels + row / panel_columns * layout.panel_bytes + row % panel_columns * 4;
    const float scale = load_f32(layout.scales + row * 4, DType::f32);
    for (std::int64_t k = 0; k < matrix.in_features; ++k)
        weights[k] = scale * static_cast<float>(static_cast<std::int8_t>(column[weight_offset(k)]));
}

CodesInfo describe_codes(const PackedHeader& header) noexcept {
    return {DType::i8, header.in_features, 1, CodeZeros::none};
}

void read_codes(const MatrixView& matrix, std::int64_t row, std::byte* codes, float* scales, float*) noexcept {
    const Int8Layout layout = int8_layout(matrix.payload, matrix.out_features, matrix.in_features);
    const std::byte* column = layout.panels + row / panel_columns * layout.panel_bytes + row % panel_columns * 4;
    for (std::int64_t k = 0; k < matrix.in_features; ++k) codes[k] = column[weight_offset(k)];
    *scales = load_f32(layout.scales + row * 4, DType::f32);
}

constexpr CodesReader codes_reader = {describe_codes, read_codes, nullptr};

}  // namespace

const FormatDefinition int8_format = {
    Format::int8,
    "int8",
    matrix_bytes,
    pack,
    unpack_row,
    {&ref::int8_kernels,
     FASTFFN_X86_KERNELS(&avx2::int8_kernels, nullptr, &avx512vnni::int8_kernels, nullptr, &amx::int8_kernels)},
    nullptr,  // options_valid
    nullptr,  // read_options
    nullptr,  // list_options
    nullptr,  // kernels_for
    nullptr,  // unpack_all
    nullptr,  // payload_valid
    &codes_reader,
};

}  // namespace fastffn
