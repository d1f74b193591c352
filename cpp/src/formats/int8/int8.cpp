// int8: symmetric per output row, quads of depths per step; see layout.hpp.
#include "formats/int8/layout.hpp"

#include <cmath>

#include "formats/common/panels.hpp"
#include "formats/kernels.hpp"

namespace fastffn {

namespace {

std::int64_t matrix_bytes(const PackedHeader& header) noexcept {
    return divide_up(header.out_features, panel_columns) * (128 + int8_panel_bytes(header.in_features));
}

std::int64_t weight_offset(std::int64_t k) { return k / 4 * 64 + k % 4; }

// To nearest even for |x| below 2^22: the sum has no bits left for a fraction. Four times faster than std::nearbyint,
// which is a call into the C library on baseline x86-64.
float nearest_integer(float x) {
    constexpr float no_fraction = 12582912.0f;  // 1.5 · 2^23
    return (x + no_fraction) - no_fraction;
}

Status pack(const PlainMatrix& matrix, const PackJob& job) {
    const std::string& which = job.which;
    if (matrix.in_features > int8_depth_limit)
        return {StatusCode::invalid_argument, which + ": w has in_features " + std::to_string(matrix.in_features) +
                                                  ", int8 takes at most " + std::to_string(int8_depth_limit) +
                                                  " (its int32 sums would overflow)"};
    const Int8Layout layout = int8_layout(job.payload, matrix.out_features, matrix.in_features);
    LowestRow not_finite;
    Status status = for_each_row(matrix, which, [&](std::int64_t row, const float* weights) {
        float largest = 0;
        bool finite = true;
        for (std::int64_t k = 0; k < matrix.in_features; ++k) {
            finite = finite && std::isfinite(weights[k]);
            largest = std::fmax(largest, std::fabs(weights[k]));
        }
        if (!finite) {
            not_finite.note(row);
            return;
        }
        const float scale = largest / 127.0f;
        std::int32_t sum = 0;
        std::byte* column =
            const_cast<std::byte*>(layout.panels) + row / panel_columns * layout.panel_bytes + row % panel_columns * 4;
        for (std::int64_t k = 0; k < matrix.in_features; ++k) {
            // A subnormal scale can round the quotient above 127: clamp.
            const float q = scale > 0 ? nearest_integer(weights[k] / scale) : 0.0f;
            const auto code = static_cast<std::int8_t>(q < -127.0f ? -127.0f : q > 127.0f ? 127.0f : q);
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

}  // namespace

const FormatDefinition int8_format = {
    Format::int8,
    "int8",
    matrix_bytes,
    pack,
    unpack_row,
    {&ref::int8_kernels,
     FASTFFN_X86_KERNELS(&avx2::int8_kernels, nullptr, &avx512vnni::int8_kernels, nullptr, &amx::int8_kernels)},
};

}  // namespace fastffn
