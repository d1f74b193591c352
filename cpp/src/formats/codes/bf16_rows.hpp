// Rows of activations → words of bf16 for int4 with act="bf16". An Isa (bf16_isa_*.hpp) brings the words of its instructions:
//
//   depth_words      words per 8 depths, which is a line of a panel: 4 pairs, or 8 f32
//   store_words      8 depths at least, rounded to bf16, in the order that word() of the same Isa unpacks a line
//   sum_line         Σ of 64 bytes of them
#pragma once

#include "formats/codes/rows.hpp"

namespace fastffn {
namespace {

inline constexpr std::int64_t codes_bf16_words(const CodesLayout<4>& layout, int line_words) {
    return layout.padded_depth / 8 * line_words;
}

// Rows: CodesBf16Rows, or another arrangement of the same.
template <class Isa, class Rows = CodesBf16Rows>
std::int64_t codes_bf16_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const CodesLayout<4> layout(matrix);
    return Rows(total_rows, codes_bf16_words(layout, Isa::line_words), layout.groups).bytes;
}

template <class Isa, class Rows>
void codes_bf16_prepare_rows(const PrepareArgs& a) {
    const CodesLayout<4> layout(*a.matrix);
    const std::int64_t bytes = element_bytes(a.dtype), words = codes_bf16_words(layout, Isa::line_words);
    const std::int64_t group_words = layout.group / 8 * Isa::line_words;
    const Rows rows(a.total_rows, words, layout.groups);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* src = a.src + r * a.src_stride;
        const std::int64_t row = a.row0 + r;
        for (std::int64_t k = 0; k < layout.padded_depth; k += Isa::store_depths)
            Isa::store_words(a.prepared + rows.at(row, k / 8 * Isa::line_words), src + k * bytes, a.dtype, a.depth - k);
        if ((a.matrix->flags & codes_zeros_mask) == codes_no_zeros) continue;
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            float sum = 0;
            for (std::int64_t word = 0; word < group_words; word += 16)
                sum += Isa::sum_line(a.prepared + rows.at(row, g * group_words + word));
            __builtin_memcpy(a.prepared + rows.sums + (row * layout.groups + g) * 4, &sum, 4);
        }
    }
}

template <class Isa, class Rows = CodesBf16Rows>
void codes_bf16_prepare(const PrepareArgs& a) noexcept {
    if (a.matrix->flags & codes_hadamard_mask) codes_prepare_transformed<Isa>(a, codes_bf16_prepare_rows<Isa, Rows>);
    else codes_bf16_prepare_rows<Isa, Rows>(a);
}

}  // namespace
}  // namespace fastffn
