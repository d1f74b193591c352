// The instructions that codes need, on AVX2.
//   instruction            latency  per cycle    (Zen 3 to 5; Intel 2 per cycle in all)
//   vpmaddubsw, vpmaddwd      3          2
// A pair sum of VPMADDUBSW is at most 2 · 15 · 128: far from saturating int16.
#pragma once

#include "core/simd_avx2.hpp"

#include "formats/codes/layout.hpp"
#include "formats/common/registers_avx2.hpp"

namespace fastffn {
namespace {

struct DotCodes : SumI32 {
    static Acc dot(Acc acc, Register word, Register weights) {
        return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(weights, word), _mm256_set1_epi16(1)));
    }
};

struct CodesIsa {
    using F32 = avx2::F32;
    using Register = __m256i;
    using Dot = DotCodes;
    static constexpr HadamardKernel hadamard = avx2::hadamard_row;
    static constexpr int register_bytes = 32, per_panel = 2;
    // Four-bit codes in place would saturate, and sixteen registers are too few for a sum per field.
    template <int bits>
    static constexpr bool in_place = false;

    static Register zero() { return _mm256_setzero_si256(); }
    static Register set(std::int32_t value) { return _mm256_set1_epi32(value); }
    static Register load(const std::byte* src) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src)); }
    static void store(std::byte* dst, Register value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), value); }
    static Register broadcast(const std::byte* word) { return Dot::broadcast(word); }
    static Register add(Register a, Register b) { return _mm256_add_epi32(a, b); }
    static Register sub(Register a, Register b) { return _mm256_sub_epi32(a, b); }
    static Register multiply(Register a, Register b) { return _mm256_mullo_epi32(a, b); }
    static Register shift_right(Register a, int count) { return _mm256_srai_epi32(a, count); }
    static F32 to_f32(Register a) { return _mm256_cvtepi32_ps(a); }
    static F32 load_f16(const std::byte* src) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
    }
    static Register load_u8(const std::byte* src) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(src)));
    }
    template <int bits>
    static Register masked(Register packed, int field) {
        return _mm256_and_si256(packed, _mm256_set1_epi8(static_cast<char>(((1 << bits) - 1) << (field * bits))));
    }
    template <int bits>
    static Register field(Register packed, int field) {
        return _mm256_and_si256(_mm256_srli_epi16(packed, field * bits), _mm256_set1_epi8((1 << bits) - 1));
    }
    static Register dot_word(Register acc, Register codes, const std::byte* word) {
        return Dot::dot(acc, broadcast(word), codes);
    }

    static void store_codes(std::byte* dst, F32 scaled, float lowest, float highest) {
        const __m256i codes = _mm256_cvtps_epi32(  // to nearest even
            _mm256_min_ps(_mm256_max_ps(scaled.v, _mm256_set1_ps(lowest)), _mm256_set1_ps(highest)));
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(codes), _mm256_extracti128_si256(codes, 1));
        _mm_storel_epi64(reinterpret_cast<__m128i*>(dst), _mm_packs_epi16(words, words));
    }
    // count: a multiple of 16.
    static std::int32_t sum_codes(const std::byte* codes, std::int64_t count) {
        __m256i sums = _mm256_setzero_si256();
        for (std::int64_t k = 0; k < count; k += 16) {
            const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + k));
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_cvtepi8_epi16(bytes), _mm256_set1_epi16(1)));
        }
        alignas(32) std::int32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sums);
        std::int32_t total = 0;
        for (std::int32_t lane : lanes) total += lane;
        return total;
    }
};

}  // namespace
}  // namespace fastffn
