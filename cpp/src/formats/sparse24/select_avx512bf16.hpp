// sparse24 with bf16 values and VDPBF16PS: rows as the dense kernel prepares them. A slot is one group: the kept pair of a
// column is one dword, and VPSHUFB brings the two activations it meets into the same dword.
//   instruction          latency  per cycle    (Zen 4; Intel server cores)
//   vdpbf16ps zmm           6         1         (1)
//   vpshufb zmm             1         1         (1: port 5)
//   vpermd zmm              4         1         (1: port 5)
#pragma once

#include "formats/bf16/pairs_avx512bf16.hpp"
#include "formats/sparse24/picks_avx512.hpp"
#include "formats/sparse24/select.hpp"

namespace fastffn {
namespace {

struct PairSlots : DotBf16 {
    struct Weights {
        Register picks, pairs;
    };
    static constexpr std::int64_t word_bytes = 8, weight_bytes = 128;
    static constexpr std::int64_t step_bytes = Sparse24Layout(Sparse24Values::bf16).block_bytes();

    // Code i | j << 2 as the bytes of elements i and j. VPERMD takes the low four bits of a lane: just the code.
    static Register picks(const std::byte* codes) {
        alignas(64) static constexpr std::uint32_t pairs[16] = {
            0x01000100, 0x01000302, 0x01000504, 0x01000706, 0x03020100, 0x03020302, 0x03020504, 0x03020706,
            0x05040100, 0x05040302, 0x05040504, 0x05040706, 0x07060100, 0x07060302, 0x07060504, 0x07060706};
        return _mm512_permutexvar_epi32(group_picks(codes, 0), _mm512_load_si512(pairs));
    }
    static Register broadcast(const std::byte* word) { return broadcast_8(word); }
    static Weights read(const std::byte* block, int slot, int) {
        return {picks(block + slot * 8), load_weights(block + 64 + slot * 64)};
    }
    static void spread(const Weights& weights, std::byte* expanded, int) {
        store_register(expanded, weights.picks);
        store_register(expanded + 64, weights.pairs);
    }
    static Weights load(const std::byte* expanded, std::int64_t k, int) {
        expanded += k * weight_bytes;
        return {load_weights(expanded), load_weights(expanded + 64)};
    }
    static Acc dot(Acc acc, Register word, const Weights& weights) {
        return DotBf16::dot(acc, shuffle(word, weights.picks), weights.pairs);
    }
};

inline void select_pairs_prepare(const PrepareArgs& a) noexcept {
    pairs_prepare(a);
    if (a.col0 + a.cols != a.depth) return;
    // Half lines were written; zeros in the other half of the last block, which kept zeros of the padding meet.
    const std::int64_t stride = words_stride(divide_up(a.depth, 2)), written = a.col0 + round_up(a.cols, 16);
    if (written % 32 == 0) return;
    for (std::int64_t r = 0; r < a.rows; ++r)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(a.prepared + (a.row0 + r) * stride + written * 2),
                            _mm256_setzero_si256());
}

inline void select_pairs_multiply(const MultiplyArgs& a) noexcept {
    const Sparse24Payload payload = sparse24_payload(a.matrix, Sparse24Values::bf16);
    const std::int64_t stride = words_stride(divide_up(a.matrix.in_features, 2));
    multiply_panels<SelectOp<PairSlots>>(
        {a.prepared + a.row0 * stride, stride, payload.panels + a.first_panel * payload.panel_bytes,
         payload.panel_bytes, payload.blocks, a.rows, a.panels, a.tile, a.tile_stride},
        a.total_rows, nothing_to_finish);
}

}  // namespace
}  // namespace fastffn
