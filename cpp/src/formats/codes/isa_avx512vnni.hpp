// The instructions that codes need, on AVX-512 with VNNI.
//   instruction        latency  per cycle    (Zen 5; Zen 4 half of it on 512 bits)
//   vpdpbusd zmm          5         2        four products of u8 · s8 per lane, no saturation
//   vpandd, vpsrlw zmm    1         4, 2
#pragma once

#include "core/simd_avx512.hpp"

#include "formats/codes/layout.hpp"
#include "formats/common/registers_avx512.hpp"

namespace fastffn {
namespace {

// word: s8 activations; weights: u8 codes. As assembly, because gcc 12 copies accumulators around _mm512_dpbusd_epi32.
struct DotCodes : SumI32 {
    static Acc dot(Acc acc, __m512i word, __m512i weights) {
        __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(weights), "v"(word));
        return acc;
    }
};

struct CodesIsa {
    using F32 = avx512::F32;
    using Register = __m512i;
    using Dot = DotCodes;
    static constexpr HadamardKernel hadamard = avx512::hadamard_row;
    static constexpr int register_bytes = 64, per_panel = 1;
    template <int bits>
    static constexpr bool in_place = true;

    static Register zero() { return _mm512_setzero_si512(); }
    static Register set(std::int32_t value) { return _mm512_set1_epi32(value); }
    static Register load(const std::byte* src) { return _mm512_loadu_si512(src); }
    static void store(std::byte* dst, Register value) { _mm512_storeu_si512(dst, value); }
    static Register broadcast(const std::byte* word) { return Dot::broadcast(word); }
    static Register add(Register a, Register b) { return _mm512_add_epi32(a, b); }
    static Register sub(Register a, Register b) { return _mm512_sub_epi32(a, b); }
    static Register multiply(Register a, Register b) { return _mm512_mullo_epi32(a, b); }
    static Register shift_right(Register a, int count) { return _mm512_srai_epi32(a, static_cast<unsigned>(count)); }
    static F32 to_f32(Register a) { return _mm512_cvtepi32_ps(a); }
    static F32 load_f16(const std::byte* src) {
        // gcc 12 warns of its own undefined register in _mm512_cvtph_ps here.
        return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src)));
    }
    static Register load_u8(const std::byte* src) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
    }
    template <int bits>
    static Register masked(Register packed, int field) {
        return _mm512_and_si512(packed, _mm512_set1_epi8(static_cast<char>(((1 << bits) - 1) << (field * bits))));
    }
    template <int bits>
    static Register field(Register packed, int field) {
        return _mm512_and_si512(_mm512_srli_epi16(packed, static_cast<unsigned>(field * bits)),
                                _mm512_set1_epi8((1 << bits) - 1));
    }
    static Register dot_word(Register acc, Register codes, const std::byte* word) {
        __asm__("vpdpbusd %2%{1to16%}, %1, %0"
                : "+v"(acc)
                : "v"(codes), "m"(*reinterpret_cast<const std::int32_t*>(word)));
        return acc;
    }

    static void store_codes(std::byte* dst, F32 scaled, float lowest, float highest) {
        const __m512i codes = _mm512_cvtps_epi32(  // to nearest even
            _mm512_min_ps(_mm512_max_ps(scaled.v, _mm512_set1_ps(lowest)), _mm512_set1_ps(highest)));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), _mm512_cvtepi32_epi8(codes));
    }
    // count: a multiple of 16.
    static std::int32_t sum_codes(const std::byte* codes, std::int64_t count) {
        __m512i sums = _mm512_setzero_si512();
        const __m512i ones = _mm512_set1_epi8(1);
        std::int64_t k = 0;
        for (; k + 64 <= count; k += 64) sums = Dot::dot(sums, _mm512_loadu_si512(codes + k), ones);
        if (k < count) {
            const __mmask64 rest = (std::uint64_t{1} << (count - k)) - 1;
            sums = Dot::dot(sums, _mm512_maskz_loadu_epi8(rest, codes + k), ones);
        }
        return _mm512_reduce_add_epi32(sums);
    }
};

}  // namespace
}  // namespace fastffn
