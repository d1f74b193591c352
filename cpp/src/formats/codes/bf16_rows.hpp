// Rows of activations → words of bf16 for int4 with act="bf16". An Isa (bf16_isa_*.hpp) brings the words of its instructions:
//
//   depth_words      words per 8 depths, which is a line of a panel: 4 pairs, or 8 f32
//   store_words      8 depths at least, rounded to bf16, in the order that word() of the same Isa unpacks a line
//   sum_words        Σ of some words
#pragma once

#include "formats/codes/rows.hpp"

namespace fastffn {
namespace {

template <class Isa>
CodesBf16Rows codes_bf16_rows(std::int64_t total_rows, const CodesLayout<4>& layout) {
    return {total_rows, layout.padded_depth / 8 * Isa::line_words, layout.groups};
}

template <class Isa>
std::int64_t codes_bf16_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    return codes_bf16_rows<Isa>(total_rows, CodesLayout<4>(matrix)).bytes;
}

template <class Isa>
void codes_bf16_prepare_rows(const PrepareArgs& a) {
    const CodesLayout<4> layout(*a.matrix);
    const CodesBf16Rows rows = codes_bf16_rows<Isa>(a.total_rows, layout);
    const std::int64_t bytes = element_bytes(a.dtype), group_bytes = layout.group / 8 * Isa::line_words * 4;
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* src = a.src + r * a.src_stride;
        std::byte* dst = a.prepared + (a.row0 + r) * rows.stride;
        for (std::int64_t k = 0; k < layout.padded_depth; k += Isa::store_depths)
            Isa::store_words(dst + k / 8 * Isa::line_words * 4, src + k * bytes, a.dtype, a.depth - k);
        if ((a.matrix->flags & codes_zeros_mask) == codes_no_zeros) continue;
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            const float sum = Isa::sum_words(dst + g * group_bytes, group_bytes);
            __builtin_memcpy(a.prepared + rows.sums + ((a.row0 + r) * layout.groups + g) * 4, &sum, 4);
        }
    }
}

template <class Isa>
void codes_bf16_prepare(const PrepareArgs& a) noexcept {
    if (a.matrix->flags & codes_hadamard_mask) codes_prepare_transformed<Isa>(a, codes_bf16_prepare_rows<Isa>);
    else codes_bf16_prepare_rows<Isa>(a);
}

}  // namespace
}  // namespace fastffn
