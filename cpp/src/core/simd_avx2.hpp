// Eight floats in one AVX register, and moving them from and to arrays of any float dtype.
// For files compiled with the avx2 flags; simd_avx512.hpp offers the same names on sixteen floats.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "fastffn/dtype.hpp"

namespace fastffn::avx2 {
namespace {

// Half as many doubles, for sums that f32 cannot hold.
struct F64 {
    __m256d v;
    static F64 zero() { return {_mm256_setzero_pd()}; }
};

struct F32 {
    using F64 = avx2::F64;
    static constexpr std::int64_t width = 8;
    __m256 v;

    F32(__m256 value) : v(value) {}
    explicit F32(float value) : v(_mm256_set1_ps(value)) {}
    // Up to `width` elements as f32, zero in the lanes past `count`; reads no byte past them.
    static F32 load_as(const std::byte* src, DType dtype, std::int64_t count);
    static F32 load(const float* src) { return _mm256_loadu_ps(src); }
};

inline F32 operator+(F32 a, F32 b) { return _mm256_add_ps(a.v, b.v); }
inline F32 operator-(F32 a, F32 b) { return _mm256_sub_ps(a.v, b.v); }
inline F32 operator*(F32 a, F32 b) { return _mm256_mul_ps(a.v, b.v); }
inline F32 operator/(F32 a, F32 b) { return _mm256_div_ps(a.v, b.v); }
inline F32 multiply_add(F32 a, F32 b, F32 c) { return _mm256_fmadd_ps(a.v, b.v, c.v); }
inline F32 negative_multiply_add(F32 a, F32 b, F32 c) { return _mm256_fnmadd_ps(a.v, b.v, c.v); }
// The second operand when either is NaN, as MAXPS and MINPS do.
inline F32 maximum(F32 a, F32 b) { return _mm256_max_ps(a.v, b.v); }
inline F32 minimum(F32 a, F32 b) { return _mm256_min_ps(a.v, b.v); }
inline F32 absolute(F32 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v); }
inline F32 nearest_integer(F32 a) { return _mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a · 2^n for an integer-valued n in [-252, 252], in two factors so that neither overflows on its own.
inline F32 scale_by_power(F32 a, F32 n) {
    const __m256i whole = _mm256_cvtps_epi32(n.v), half = _mm256_srai_epi32(whole, 1);
    auto power = [](__m256i exponent) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
    };
    return _mm256_mul_ps(_mm256_mul_ps(a.v, power(half)), power(_mm256_sub_epi32(whole, half)));
}
// x < 0 ? a : b
inline F32 select_negative(F32 x, F32 a, F32 b) {
    return _mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_LT_OQ));
}
inline void store(float* dst, F32 a) { _mm256_storeu_ps(dst, a.v); }

inline F64 low_half(F32 a) { return {_mm256_cvtps_pd(_mm256_castps256_ps128(a.v))}; }
inline F64 high_half(F32 a) { return {_mm256_cvtps_pd(_mm256_extractf128_ps(a.v, 1))}; }
inline F64 add_square(F64 sum, F64 a) { return {_mm256_fmadd_pd(a.v, a.v, sum.v)}; }
inline void store(double* dst, F64 a) { _mm256_storeu_pd(dst, a.v); }

inline __m256i first_lanes(std::int64_t count) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count < 8 ? count : 8)), index);
}

inline __m256 widen_bf16(__m128i halves) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
}

// Round to nearest even, NaN kept.
inline __m128i narrow_bf16(__m256 value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

inline F32 round_to_bf16(F32 a) { return widen_bf16(narrow_bf16(a.v)); }

inline F32 F32::load_as(const std::byte* src, DType dtype, std::int64_t count) {
    if (dtype == DType::f32) return _mm256_maskload_ps(reinterpret_cast<const float*>(src), first_lanes(count));
    __m128i halves;
    if (count >= 8) {
        halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src));
    } else {
        alignas(16) std::uint16_t buffer[8] = {};
        for (std::int64_t i = 0; i < count; ++i) __builtin_memcpy(buffer + i, src + 2 * i, 2);
        halves = _mm_load_si128(reinterpret_cast<const __m128i*>(buffer));
    }
    return dtype == DType::bf16 ? widen_bf16(halves) : _mm256_cvtph_ps(halves);
}

inline void store_as(std::byte* dst, DType dtype, F32 value, std::int64_t count) {
    if (dtype == DType::f32) {
        _mm256_maskstore_ps(reinterpret_cast<float*>(dst), first_lanes(count), value.v);
        return;
    }
    const __m128i halves =
        dtype == DType::bf16 ? narrow_bf16(value.v) : _mm256_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT);
    if (count >= 8) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), halves);
    } else {
        alignas(16) std::uint16_t buffer[8];
        _mm_store_si128(reinterpret_cast<__m128i*>(buffer), halves);
        for (std::int64_t i = 0; i < count; ++i) __builtin_memcpy(dst + 2 * i, buffer + i, 2);
    }
}

}  // namespace
}  // namespace fastffn::avx2
