// int8 with AVX2: rows as quads of signed codes. VPMADDUBSW wants one unsigned operand, so it gets |x| and the weights
// with the sign of x; as both lie in [-127, 127], its int16 pair sums stay within 2 · 127² = 32258 and never saturate.
//   instruction           latency  per cycle    (Zen 3 to 5; Intel 2 per cycle in all)
//   vpsignb, vpabsb          1         2–4
//   vpmaddubsw, vpmaddwd     3          2
#pragma once

#include "core/simd_avx2.hpp"

#include "formats/common/blocks.hpp"
#include "formats/common/registers_avx2.hpp"
#include "formats/int8/layout.hpp"

namespace fastffn {
namespace {

struct QuadsOp : SumI32 {
    using Native = QuadsOp;
    static constexpr std::int64_t row_words = 1, step_bytes = 64;
    static constexpr bool expands = false;
    static Acc dot(Acc acc, Register word, Register weights) {
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(word), _mm256_sign_epi8(weights, word));
        return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static Acc step(Acc acc, const std::byte* words, const std::byte* weights) {
        return dot(acc, broadcast(words), load_weights(weights));
    }
};

inline std::int64_t quads_row_stride(std::int64_t depth) { return words_stride(divide_up(depth, 4)); }

inline std::int64_t quads_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const std::int64_t depth = matrix.in_features;
    return total_rows * quads_row_stride(depth) + round_up(total_rows * 4, 64);
}

inline __m256i magnitude_bits(const std::byte* src, DType dtype, std::int64_t count) {
    return _mm256_castps_si256(avx2::absolute(avx2::F32::load_as(src, dtype, count)).v);
}

// Eight codes in [-127, 127] as int32; `inverse` is 0 for rows whose codes are all 0.
inline __m256i quantise(const std::byte* src, DType dtype, std::int64_t count, float inverse) {
    if (inverse == 0) return _mm256_setzero_si256();
    const __m256 scaled = _mm256_mul_ps(avx2::F32::load_as(src, dtype, count).v, _mm256_set1_ps(inverse));
    const __m256i codes = _mm256_cvtps_epi32(scaled);  // to nearest even
    return _mm256_max_epi32(_mm256_min_epi32(codes, _mm256_set1_epi32(127)), _mm256_set1_epi32(-127));
}

inline void quads_prepare(const PrepareArgs& a) noexcept {
    const std::int64_t stride = quads_row_stride(a.depth), bytes = element_bytes(a.dtype);
    auto* scales = reinterpret_cast<float*>(a.prepared + a.total_rows * stride);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* src = a.src + r * a.src_stride;
        std::byte* dst = a.prepared + (a.row0 + r) * stride;
        // Magnitudes compare like integers, and NaN compares above infinity.
        __m256i largest = _mm256_setzero_si256();
        for (std::int64_t k = 0; k < a.depth; k += 8)
            largest = _mm256_max_epi32(largest, magnitude_bits(src + k * bytes, a.dtype, a.depth - k));
        alignas(32) std::int32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), largest);
        std::int32_t bits = 0;
        for (std::int32_t lane : lanes) bits = lane > bits ? lane : bits;
        float value;
        __builtin_memcpy(&value, &bits, 4);
        const bool finite = bits < 0x7f800000, zero = value < int8_smallest_row;
        const float inverse = !finite || zero ? 0.0f : 127.0f / value;
        scales[a.row0 + r] = !finite ? __builtin_nanf("") : zero ? 0.0f : value / 127.0f;
        // The last store may pass the depth: it stays within the row's padding, and meets zero weights.
        for (std::int64_t k = 0; k < a.depth; k += 16) {
            const __m256i low = quantise(src + k * bytes, a.dtype, a.depth - k, inverse);
            const __m256i high = a.depth - k > 8 ? quantise(src + (k + 8) * bytes, a.dtype, a.depth - k - 8, inverse)
                                                 : _mm256_setzero_si256();
            const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + k),
                             _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
        }
    }
}

// Rows prepared so, times panels that Op reads in `steps` steps: for every format with such scales.
template <class Op>
void quads_multiply_as(const MultiplyArgs& a, const Int8Layout& layout, std::int64_t steps) noexcept {
    const std::int64_t stride = quads_row_stride(a.matrix.in_features);
    const auto* scales = reinterpret_cast<const float*>(a.prepared + a.total_rows * stride) + a.row0;
    auto finish = [&](std::int64_t row, std::int64_t rows, std::int64_t panel, std::int64_t panels) {
        for (std::int64_t c = panel * 16; c < (panel + panels) * 16; c += 8) {
            const auto* column_scales = layout.scales + (a.first_panel * 16 + c) * 4;
            const __m256 column_scale = _mm256_loadu_ps(reinterpret_cast<const float*>(column_scales));
            for (std::int64_t r = row; r < row + rows; ++r) {
                float* tile = a.tile + r * a.tile_stride + c;
                _mm256_storeu_ps(tile, _mm256_mul_ps(_mm256_cvtepi32_ps(Op::load_acc(tile)),
                                                     _mm256_mul_ps(_mm256_set1_ps(scales[r]), column_scale)));
            }
        }
    };
    multiply_panels<Op>({a.prepared + a.row0 * stride, stride, layout.panels + a.first_panel * layout.panel_bytes,
                         layout.panel_bytes, steps, a.rows, a.panels, a.tile, a.tile_stride},
                        a.total_rows, finish);
}

}  // namespace
}  // namespace fastffn
