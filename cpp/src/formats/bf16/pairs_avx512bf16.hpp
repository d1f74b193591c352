// bf16 with VDPBF16PS: rows as pairs of bf16, one pair broadcast per step. Also the few-rows path of the AMX kernel.
//   instruction          latency  per cycle    (Zen 5)
//   vdpbf16ps zmm           6         2        two products per lane; subnormal inputs count as zero
#pragma once

#include "core/simd_avx512.hpp"

#include "formats/common/blocks.hpp"
#include "formats/common/registers_avx512.hpp"

namespace fastffn {
namespace {

struct DotBf16 : SumF32 {
    static Acc dot(Acc acc, __m512i word, __m512i weights) {
        return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(word), reinterpret_cast<__m512bh>(weights));
    }
};

struct PairsOp : DotBf16 {
    using Native = DotBf16;
    static constexpr std::int64_t row_words = 1, step_bytes = 64;
    static constexpr bool expands = false;
    static Acc step(Acc acc, const std::byte* words, const std::byte* weights) {
        return dot(acc, broadcast(words), load_weights(weights));
    }
};

inline std::int64_t pairs_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const std::int64_t depth = matrix.in_features;
    return total_rows * words_stride(divide_up(depth, 2));
}

// 16 elements as bf16. A bf16 source is taken as it is; f32 and f16 round to nearest even.
inline __m256i load_bf16(const std::byte* src, DType dtype, std::int64_t count) {
    if (dtype == DType::bf16) return _mm256_maskz_loadu_epi16(avx512::first_lanes(count), src);
    return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(avx512::F32::load_as(src, dtype, count).v));
}

inline void pairs_prepare(const PrepareArgs& a) noexcept {
    const std::int64_t stride = words_stride(divide_up(a.depth, 2)), bytes = element_bytes(a.dtype);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* src = a.src + r * a.src_stride;
        std::byte* dst = a.prepared + (a.row0 + r) * stride + a.col0 * 2;
        // Lanes past the last column are stored as zeros, within the row's cache-line padding.
        for (std::int64_t c = 0; c < a.cols; c += 16)
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + c * 2),
                                load_bf16(src + c * bytes, a.dtype, a.cols - c));
    }
}

inline void pairs_multiply(const MultiplyArgs& a) noexcept {
    const std::int64_t steps = divide_up(a.matrix.in_features, 2);
    const std::int64_t panel_bytes = panel_bytes_of(divide_up(packed_columns(a.matrix), 2), 64);
    const std::int64_t stride = words_stride(steps);
    multiply_panels<PairsOp>({a.prepared + a.row0 * stride, stride, a.matrix.payload + a.first_panel * panel_bytes,
                              panel_bytes, steps, a.rows, a.panels, a.tile, a.tile_stride},
                             a.total_rows, nothing_to_finish);
}

}  // namespace
}  // namespace fastffn
