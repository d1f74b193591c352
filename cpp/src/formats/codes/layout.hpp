// What `ternary` and `int4` have in common: unsigned codes of 2 or 4 bits in panels of 16 output columns, and their scales.
//
//   w[o][k] = scale · (code - zero)          one scale per output column, or one per column and group of depths
//
// A line of 64 bytes holds, for each of the 16 columns, 4 bytes; field f (bits f·bits and up) of byte b is the code of depth
// line · depths_per_line + 4·f + b. So one mask turns a line into a quad of depths per column, the operand of VPDPBUSD:
// u8 codes times s8 activations. Panels are padded to whole groups, and to 64 depths for AMX.
//
// Option "order" has two other arrangements of the same codes, for layers that skip neurons:
//
//   rows     a row's codes lie together: field f of byte b of its line l is the code of depth (l·fields + f)·64 + b, so one mask
//            gives 64 codes that meet 64 consecutive activations. Rows are padded to whole lines, and to 16 of them.
//   columns  a column's codes lie together: field f of byte 16·i + 4·j + m of its line l is the code of row
//            l·64·fields + f·64 + 16·j + 4·i + m, so that four lines interleaved by bytes, within 16 of them, are quads for panels in
//            their order.
//
// Payload: [panels][scales][zeros]
//   scales   no groups: f32 per column; groups: f16 [panel][group][16 columns], order rows: [row][group]
//   zeros    zero points: u8, minima (w = scale · code + minimum): f16, both as scales of groups; else absent
// Included by kernel files: inline code in an anonymous namespace only.
#pragma once

#include "core/hadamard.hpp"
#include "core/kernel.hpp"

namespace fastffn {
namespace {

// Header flags of both formats.
constexpr std::uint32_t codes_zeros_mask = 3, codes_no_zeros = 0, codes_zero_points = 1, codes_minima = 2;
constexpr std::uint32_t codes_act_shift = 2, codes_act_mask = 3u << codes_act_shift;
constexpr std::uint32_t codes_act_int8 = 0, codes_act_int4 = 1, codes_act_bf16 = 2;  // bf16: int4 only
constexpr std::uint32_t codes_scale_shift = 4,
                        codes_scale_mask = 3u << codes_scale_shift;  // how pack() made the scales
constexpr std::uint32_t codes_hadamard_shift = 6, codes_hadamard_mask = 3u << codes_hadamard_shift;
constexpr std::uint32_t codes_rotated = 1u << 8;  // w came in the basis of H · x; unpack() leaves it there
constexpr std::uint32_t codes_order_shift = 9, codes_order_mask = 3u << codes_order_shift;
constexpr std::uint32_t codes_order_panels = 0, codes_order_rows = 1, codes_order_columns = 2;
constexpr std::uint32_t codes_all_flags =
    codes_zeros_mask | codes_act_mask | codes_scale_mask | codes_hadamard_mask | codes_rotated | codes_order_mask;

constexpr std::uint32_t codes_act(std::uint32_t flags) { return (flags & codes_act_mask) >> codes_act_shift; }
constexpr std::uint32_t codes_order(std::uint32_t flags) { return (flags & codes_order_mask) >> codes_order_shift; }

// The largest code times the largest activation times the depth must fit int32, fields in place: 240 · 128 · depth / 2.
constexpr std::int64_t codes_depth_limit = 133144;
// Order columns sums a whole depth in each lane: 240 · 128 · depth.
constexpr std::int64_t codes_columns_depth_limit = 65536;

// A row that is transformed lies on the stack meanwhile: up to 128 KiB.
constexpr std::int64_t codes_hadamard_limit = 32768;

// The transform of activations (inverse: back to the basis of w) that header flags ask for; none: power and order 1.
inline bool codes_hadamard(std::uint32_t flags, std::int64_t in_features, std::uint32_t block, bool inverse,
                           HadamardShape* shape) {
    const auto mode = static_cast<Hadamard>((flags & codes_hadamard_mask) >> codes_hadamard_shift);
    return hadamard_shape(mode, in_features, block, inverse, shape);
}

template <int bits>
struct CodeTraits {
    static constexpr int fields = 8 / bits;
    static constexpr std::int64_t depths_per_line = 4 * fields;
    static constexpr std::int64_t line_codes = 64 * fields;
    static constexpr int mask = (1 << bits) - 1;
    static constexpr int zero = bits == 2 ? 1 : 8;  // the code of 0 where no zero points say otherwise
};

template <int bits>
struct CodesLayout {
    const std::byte* panels;
    const std::byte* scales;
    const std::byte* zeros;
    std::int64_t padded_depth,
        panel_bytes;             // order rows: of 16 rows; columns: all of them
    std::int64_t group, groups;  // group == 0: none, groups == 1
    std::uint32_t order;
    std::int64_t column_bytes;  // order columns
    std::int64_t bytes;

    CodesLayout(const std::byte* payload, std::int64_t out_features, std::int64_t in_features, std::uint32_t flags,
                std::uint32_t group_size)
        : group(group_size), order(codes_order(flags)) {
        using Traits = CodeTraits<bits>;
        const std::int64_t panel_count = divide_up(out_features, panel_columns);
        const std::int64_t least = order == codes_order_rows ? Traits::line_codes : 64;
        padded_depth = round_up(in_features, group > least ? group : least);
        groups = group ? divide_up(in_features, group) : 1;
        column_bytes = (divide_up(out_features, Traits::line_codes) | 1) * 64;
        panel_bytes = padded_depth / Traits::depths_per_line * 64;
        std::int64_t code_bytes = panel_count * panel_bytes;
        if (order == codes_order_columns) code_bytes = panel_bytes = padded_depth * column_bytes;
        const std::int64_t scales_bytes = round_up(panel_count * groups * (group ? 32 : 64), 64);
        const std::int64_t zero_bytes = (flags & codes_zeros_mask) == codes_zero_points ? 16
                                        : (flags & codes_zeros_mask) == codes_minima    ? 32
                                                                                        : 0;
        panels = payload;
        scales = panels + code_bytes;
        zeros = scales + scales_bytes;
        bytes = code_bytes + scales_bytes + round_up(panel_count * groups * zero_bytes, 64);
    }
    explicit CodesLayout(const MatrixView& matrix)
        : CodesLayout(matrix.payload, matrix.out_features, matrix.in_features, matrix.flags, matrix.parameters[0]) {}

    std::int64_t code_bytes() const { return scales - panels; }
    std::int64_t row_bytes() const { return panel_bytes / panel_columns; }  // order rows

    // Where the code of a weight is: a byte, and the shift of its field.
    std::int64_t code_byte(std::int64_t column, std::int64_t k) const {
        using Traits = CodeTraits<bits>;
        if (order == codes_order_rows) return column * row_bytes() + k / Traits::line_codes * 64 + k % 64;
        if (order == codes_order_columns) {
            const std::int64_t n = column % 64;
            return k * column_bytes + column / Traits::line_codes * 64 + n / 4 % 4 * 16 + n / 16 * 4 + n % 4;
        }
        return column / panel_columns * panel_bytes + k / Traits::depths_per_line * 64 + column % panel_columns * 4 +
               k % 4;
    }
    int code_shift(std::int64_t column, std::int64_t k) const {
        using Traits = CodeTraits<bits>;
        if (order == codes_order_rows) return static_cast<int>(k % Traits::line_codes / 64) * bits;
        if (order == codes_order_columns) return static_cast<int>(column % Traits::line_codes / 64) * bits;
        return static_cast<int>(k % Traits::depths_per_line / 4) * bits;
    }
    // Index of a column's entry in scales or zeros.
    std::int64_t entry(std::int64_t column, std::int64_t k) const {
        const std::int64_t g = group ? k / group : 0;
        if (order == codes_order_rows) return column * groups + g;
        return (column / panel_columns * groups + g) * panel_columns + column % panel_columns;
    }
};

// Prepared rows: [total_rows][stride] s8 codes, zero past the depth; f32 scale per row; i32 sum of codes per row and group.
struct CodesRows {
    std::int64_t stride, groups, scales, sums, bytes;

    CodesRows(std::int64_t total_rows, std::int64_t padded_depth, std::int64_t row_groups) : groups(row_groups) {
        stride = round_up(padded_depth, 64) | 64;  // an odd number of lines, as words_stride()
        scales = total_rows * stride;
        sums = scales + round_up(total_rows * 4, 64);
        bytes = sums + round_up(total_rows * groups * 4, 64);
    }
    // Offset of a code; those of 64 depths from a multiple of 64 on lie together.
    std::int64_t at(std::int64_t row, std::int64_t k) const { return row * stride + k; }
};

// Prepared rows where act is bf16: [total_rows][stride] words of f32 or pairs of bf16, zero past the depth; f32 sum per row and
// group, which zero points and minima are multiplied with.
struct CodesBf16Rows {
    std::int64_t stride, sums, bytes;

    CodesBf16Rows(std::int64_t total_rows, std::int64_t words, std::int64_t groups) {
        stride = round_up(words * 4, 64) | 64;
        sums = total_rows * stride;
        bytes = sums + round_up(total_rows * groups * 4, 64);
    }
    // Offset of a word; those of 64 bytes from a multiple of 64 on lie together.
    std::int64_t at(std::int64_t row, std::int64_t word) const { return row * stride + word * 4; }
};

// How a row becomes codes: q = clamp(nearest_even(x · inverse), lowest, highest), x ≈ q · scale. Papers: BitNet b1.58
// (arXiv:2402.17764) absmax to 127; BitNet a4.8 (arXiv:2411.04965) √7 / mean|x| to [-8, 7]. A row with NaN or infinity gets
// codes 0 and scale NaN: its outputs become NaN, and no other row's do.
struct RowCode {
    float inverse, scale, lowest, highest;
};

constexpr float square_root_7 = 2.6457513f;

// The smallest magnitude that a scale is made from. BitNet's is its ε: rows below it get fewer codes. int4 has int8's, below
// which 127 / largest overflows.
template <int bits>
constexpr float smallest_magnitude = bits == 2 ? 1e-5f : 1e-35f;

template <int bits>
RowCode row_code_of(std::uint32_t flags, float largest, float sum, std::int64_t depth, bool finite) {
    const bool four_bits = (flags & codes_act_mask) >> codes_act_shift == codes_act_int4;
    const float low = four_bits ? -8.0f : -127.0f, high = four_bits ? 7.0f : 127.0f;
    if (!finite) return {0.0f, __builtin_nanf(""), low, high};
    if (four_bits) {
        const float mean = sum / static_cast<float>(depth);
        return {square_root_7 / (mean + smallest_magnitude<bits>), mean / square_root_7, low, high};
    }
    const float gamma = largest > smallest_magnitude<bits> ? largest : smallest_magnitude<bits>;
    return {127.0f / gamma, gamma / 127.0f, low, high};
}

}  // namespace
}  // namespace fastffn
