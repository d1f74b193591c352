// bf16 where there are no bf16 instructions: a pair of weights becomes two f32 by a shift and a mask, products and sums
// in f32, activations rounded to bf16 first. Include after simd_ and registers_<isa>.hpp.
#pragma once

#include "formats/common/blocks.hpp"
#include "formats/common/prepare_words.hpp"

namespace fastffn {
namespace {

struct Op : SumF32 {
    using Native = FmaF32;
    static constexpr std::int64_t row_words = 2, step_bytes = 64;
    static constexpr bool expands = true;
    static Acc step(Acc acc, const std::byte* words, const std::byte* weights) {
        const Register pairs = load_weights(weights);
        acc = multiply_add(broadcast(words), even_bf16(pairs), acc);
        return multiply_add(broadcast(words + 4), odd_bf16(pairs), acc);
    }
    static void expand(const std::byte* weights, std::int64_t steps, std::byte* expanded) {
        for (std::int64_t k = 0; k < steps; ++k)
            for (std::int64_t i = 0; i < 64; i += register_bytes) {
                const Register pairs = load_weights(weights + k * 64 + i);
                store_floats(expanded + k * 128 + i, even_bf16(pairs));
                store_floats(expanded + k * 128 + 64 + i, odd_bf16(pairs));
            }
    }
};

std::int64_t prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const std::int64_t depth = matrix.in_features;
    return f32_words_bytes(total_rows, round_up(depth, 2));
}

template <class V>
void prepare(const PrepareArgs& a) noexcept {
    prepare_f32_words<V>(a, round_up(a.depth, 2), [](V x) { return round_to_bf16(x); });
}

void multiply(const MultiplyArgs& a) noexcept {
    const std::int64_t steps = divide_up(a.matrix.in_features, 2);
    const std::int64_t panel_bytes = panel_bytes_of(divide_up(packed_columns(a.matrix), 2), 64);
    const std::int64_t stride = words_stride(steps * 2);
    multiply_panels<Op>({a.prepared + a.row0 * stride, stride, a.matrix.payload + a.first_panel * panel_bytes,
                         panel_bytes, steps, a.rows, a.panels, a.tile, a.tile_stride},
                        a.total_rows, nothing_to_finish);
}

}  // namespace
}  // namespace fastffn
