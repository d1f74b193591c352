// sparse24 where products are summed in f32: values f32, f16, and bf16 on levels without bf16 instructions. VPERMILPS picks
// one of four activations per column by two bits of a code; two of it and two multiply-adds make a group. Include after
// simd_ and registers_<isa>.hpp, and after Picks of the instruction set:
//   picks(codes, part)   the codes of a group, one per column, at the bottom of each lane
//   next_pick(picks)     the second position of each code
//   broadcast_group(x)   four f32 in every 128-bit lane
//   pick(group, picks)   VPERMILPS
#pragma once

#include "formats/common/prepare_words.hpp"
#include "formats/sparse24/select.hpp"

namespace fastffn {
namespace {

template <Sparse24Values values>
struct F32Slots : SumF32 {
    struct Weights {
        Floats first, second;
        Register picks;
    };
    static constexpr std::int64_t word_bytes = 16, weight_bytes = 192;
    // Half as many panels at a time as dense f32: a register of columns takes three of weights.
    static constexpr int block_registers = 2;
    static constexpr std::int64_t step_bytes = Sparse24Layout(values).block_bytes();

    static Register broadcast(const std::byte* word) { return broadcast_group(word); }
    static Weights read(const std::byte* block, int slot, int part) {
        const std::byte* weights = block + 64 + slot * Sparse24Layout(values).slot_bytes;
        const Register picks = group_picks(block + slot * 8, part);
        if constexpr (values == Sparse24Values::bf16) {
            const Register pairs = load_weights(weights + part * register_bytes);
            return {even_bf16(pairs), odd_bf16(pairs), picks};
        } else if constexpr (values == Sparse24Values::f16) {
            weights += part * register_bytes / 2;
            return {widen_f16(weights), widen_f16(weights + 32), picks};
        } else {
            weights += part * register_bytes;
            return {as_floats(load_weights(weights)), as_floats(load_weights(weights + 64)), picks};
        }
    }
    static void spread(const Weights& weights, std::byte* expanded, int part) {
        expanded += part * register_bytes;
        store_floats(expanded, weights.first);
        store_floats(expanded + 64, weights.second);
        store_floats(expanded + 128, as_floats(weights.picks));
    }
    static Weights load(const std::byte* expanded, std::int64_t k, int part) {
        expanded += k * weight_bytes + part * register_bytes;
        return {as_floats(load_weights(expanded)), as_floats(load_weights(expanded + 64)),
                load_weights(expanded + 128)};
    }
    static Acc dot(Acc acc, Register group, const Weights& weights) {
        acc = multiply_add(pick(group, weights.picks), weights.first, acc);
        return multiply_add(pick(group, next_pick(weights.picks)), weights.second, acc);
    }
};

inline std::int64_t padded_depth(std::int64_t depth) { return round_up(depth, 4 * block_slots); }

std::int64_t prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    return f32_words_bytes(total_rows, padded_depth(matrix.in_features));
}

template <class V, bool to_bf16>
void prepare(const PrepareArgs& a) noexcept {
    const std::int64_t words = padded_depth(a.depth), stride = words_stride(words);
    prepare_f32_words<V>(a, words, [](V x) {
        if constexpr (to_bf16) return round_to_bf16(x);
        else return x;
    });
    if (a.col0 + a.cols != a.depth) return;
    // Whole registers were written; zeros up to the end of the block, which kept zeros of the padding meet.
    const std::int64_t written = a.col0 + round_up(a.cols, V::width);
    for (std::int64_t r = 0; r < a.rows; ++r)
        for (std::int64_t k = written; k < words; ++k)
            reinterpret_cast<float*>(a.prepared + (a.row0 + r) * stride)[k] = 0;
}

template <Sparse24Values values>
void multiply(const MultiplyArgs& a) noexcept {
    const Sparse24Payload payload = sparse24_payload(a.matrix, values);
    const std::int64_t stride = words_stride(padded_depth(a.matrix.in_features));
    multiply_panels<SelectOp<F32Slots<values>>>(
        {a.prepared + a.row0 * stride, stride, payload.panels + a.first_panel * payload.panel_bytes,
         payload.panel_bytes, payload.blocks, a.rows, a.panels, a.tile, a.tile_stride},
        a.total_rows, nothing_to_finish);
}

}  // namespace
}  // namespace fastffn
