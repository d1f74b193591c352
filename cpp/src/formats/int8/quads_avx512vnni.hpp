// int8 with VPDPBUSD: rows as quads of unsigned bytes q + 128, one quad broadcast per step; the surplus 128 · Σ w is
// taken off at the end. Also the few-rows path of the AMX kernel.
//   instruction          latency  per cycle    (Zen 5)
//   vpdpbusd zmm            5         2        four products per lane, no saturation
#pragma once

#include "core/simd_avx512.hpp"

#include "formats/common/blocks.hpp"
#include "formats/common/registers_avx512.hpp"
#include "formats/int8/layout.hpp"

namespace fastffn {
namespace {

struct DotInt8 : SumI32 {
    // As assembly, because gcc 12 copies accumulators around _mm512_dpbusd_epi32 and spills: 6 rows took twice as long.
    static Acc dot(Acc acc, __m512i word, __m512i weights) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(word), "v"(weights));
        return acc;
    }
};

struct QuadsOp : DotInt8 {
    using Native = DotInt8;
    static constexpr std::int64_t row_words = 1, step_bytes = 64;
    static constexpr bool expands = false;
    static Acc step(Acc acc, const std::byte* words, const std::byte* weights) {
        return dot(acc, broadcast(words), load_weights(weights));
    }
};

// What a row's codes are scaled by. A row with NaN or infinity: inverse 0 and scale NaN.
struct RowScale {
    float inverse, scale;
};

inline RowScale row_scale(const std::byte* src, DType dtype, std::int64_t depth) {
    const std::int64_t bytes = element_bytes(dtype);
    // Magnitudes compare like integers, and NaN compares above infinity.
    __m512i largest[4];
    for (auto& lane : largest) lane = _mm512_setzero_si512();
    const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
    std::int64_t k = 0;
    for (; k + 64 <= depth; k += 64)
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const __m512i bits = _mm512_castps_si512(avx512::F32::load_as(src + (k + i * 16) * bytes, dtype, 16).v);
            largest[i] = _mm512_max_epi32(largest[i], _mm512_and_si512(bits, magnitude));
        }
    for (; k < depth; k += 16) {
        const __m512i bits = _mm512_castps_si512(avx512::F32::load_as(src + k * bytes, dtype, depth - k).v);
        largest[0] = _mm512_max_epi32(largest[0], _mm512_and_si512(bits, magnitude));
    }
    const int bits = _mm512_reduce_max_epi32(
        _mm512_max_epi32(_mm512_max_epi32(largest[0], largest[1]), _mm512_max_epi32(largest[2], largest[3])));
    if (bits >= 0x7f800000) return {0.0f, __builtin_nanf("")};
    float value;
    __builtin_memcpy(&value, &bits, 4);
    if (value < int8_smallest_row) return {0.0f, 0.0f};
    return {127.0f / value, value / 127.0f};
}

// Sixteen codes in [-127, 127]. Lanes past `count` are 0.
inline __m128i quantise(const std::byte* src, DType dtype, std::int64_t count, __m512 inverse) {
    const __m512 scaled = _mm512_mul_ps(avx512::F32::load_as(src, dtype, count).v, inverse);
    // Rounding to nearest even is VCVTPS2DQ's; NaN and infinity times 0 give the integer indefinite value: mask them.
    const __mmask16 finite = _mm512_cmp_ps_mask(scaled, scaled, _CMP_ORD_Q);
    const __m512i codes = _mm512_maskz_cvtps_epi32(finite, scaled);
    return _mm512_cvtepi32_epi8(
        _mm512_max_epi32(_mm512_min_epi32(codes, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127)));
}

inline std::int64_t quads_stride(std::int64_t depth) { return words_stride(divide_up(depth, 4)); }

inline std::int64_t quads_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const std::int64_t depth = matrix.in_features;
    return total_rows * quads_stride(depth) + round_up(total_rows * 4, 64);
}

inline void quads_prepare(const PrepareArgs& a) noexcept {
    const std::int64_t stride = quads_stride(a.depth), bytes = element_bytes(a.dtype);
    auto* scales = reinterpret_cast<float*>(a.prepared + a.total_rows * stride);
    const __m128i to_unsigned = _mm_set1_epi8(static_cast<char>(0x80));
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* src = a.src + r * a.src_stride;
        std::byte* dst = a.prepared + (a.row0 + r) * stride;
        const RowScale scale = row_scale(src, a.dtype, a.depth);
        const __m512 inverse = _mm512_set1_ps(scale.inverse);
        // The last store may pass the depth: it stays within the row's padding, and meets zero weights.
        for (std::int64_t k = 0; k < a.depth; k += 16)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + k),
                             _mm_xor_si128(quantise(src + k * bytes, a.dtype, a.depth - k, inverse), to_unsigned));
        scales[a.row0 + r] = scale.scale;
    }
}

// Rows prepared so, times panels that Op reads in `steps` steps: for every format with such scales and column sums.
template <class Op>
void quads_multiply_as(const MultiplyArgs& a, const Int8Layout& layout, std::int64_t steps) noexcept {
    const std::int64_t stride = quads_stride(a.matrix.in_features);
    const auto* scales = reinterpret_cast<const float*>(a.prepared + a.total_rows * stride) + a.row0;
    auto finish = [&](std::int64_t row, std::int64_t rows, std::int64_t panel, std::int64_t panels) {
        for (std::int64_t p = panel; p < panel + panels; ++p) {
            const std::int64_t column_bytes = (a.first_panel + p) * 64;
            const __m512 column_scale = _mm512_loadu_ps(layout.scales + column_bytes);
            const __m512i surplus = _mm512_slli_epi32(_mm512_loadu_si512(layout.sums + column_bytes), 7);
            for (std::int64_t r = row; r < row + rows; ++r) {
                float* tile = a.tile + r * a.tile_stride + p * 16;
                const __m512i sum = _mm512_sub_epi32(_mm512_loadu_si512(tile), surplus);
                _mm512_storeu_ps(tile, _mm512_mul_ps(_mm512_cvtepi32_ps(sum),
                                                     _mm512_mul_ps(_mm512_set1_ps(scales[r]), column_scale)));
            }
        }
    };
    multiply_panels<Op>({a.prepared + a.row0 * stride, stride, layout.panels + a.first_panel * layout.panel_bytes,
                         layout.panel_bytes, steps, a.rows, a.panels, a.tile, a.tile_stride},
                        a.total_rows, finish);
}

inline void quads_multiply(const MultiplyArgs& a) noexcept {
    const std::int64_t depth = a.matrix.in_features;
    quads_multiply_as<QuadsOp>(a, int8_layout(a.matrix.payload, a.matrix.out_features, depth), divide_up(depth, 4));
}

}  // namespace
}  // namespace fastffn
