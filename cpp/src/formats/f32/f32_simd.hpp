// f32 for any vector width: fused multiply-adds on broadcast activations. Include after simd_ and registers_<isa>.hpp.
#pragma once

#include "formats/common/blocks.hpp"
#include "formats/common/prepare_words.hpp"

namespace fastffn {
namespace {

struct Op : FmaF32 {
    using Native = FmaF32;
    static constexpr std::int64_t row_words = 1, step_bytes = 64;
    static constexpr bool expands = false;
    static Acc step(Acc acc, const std::byte* words, const std::byte* weights) {
        return dot(acc, broadcast(words), load_weights(weights));
    }
};

std::int64_t prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const std::int64_t depth = matrix.in_features;
    return f32_words_bytes(total_rows, depth);
}

template <class V>
void prepare(const PrepareArgs& a) noexcept {
    prepare_f32_words<V>(a, a.depth, [](V x) { return x; });
}

void multiply(const MultiplyArgs& a) noexcept {
    const std::int64_t depth = a.matrix.in_features, panel_bytes = panel_bytes_of(packed_columns(a.matrix), 64);
    const std::int64_t stride = words_stride(depth);
    multiply_panels<Op>({a.prepared + a.row0 * stride, stride, a.matrix.payload + a.first_panel * panel_bytes,
                         panel_bytes, depth, a.rows, a.panels, a.tile, a.tile_stride},
                        a.total_rows, nothing_to_finish);
}

}  // namespace
}  // namespace fastffn
