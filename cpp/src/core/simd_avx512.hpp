// Sixteen floats in one AVX-512 register, and moving them from and to arrays of any float dtype.
// For files compiled with the avx512 flags; simd_avx2.hpp offers the same names on eight floats.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "fastffn/dtype.hpp"

namespace fastffn::avx512 {
namespace {

// Half as many doubles, for sums that f32 cannot hold.
struct F64 {
    __m512d v;
    static F64 zero() { return {_mm512_setzero_pd()}; }
};

struct F32 {
    using F64 = avx512::F64;
    static constexpr std::int64_t width = 16;
    __m512 v;

    F32(__m512 value) : v(value) {}
    explicit F32(float value) : v(_mm512_set1_ps(value)) {}
    // Up to `width` elements as f32, zero in the lanes past `count`; reads no byte past them.
    static F32 load_as(const std::byte* src, DType dtype, std::int64_t count);
    static F32 load(const float* src) { return _mm512_loadu_ps(src); }
};

inline F32 operator+(F32 a, F32 b) { return _mm512_add_ps(a.v, b.v); }
inline F32 operator-(F32 a, F32 b) { return _mm512_sub_ps(a.v, b.v); }
inline F32 operator*(F32 a, F32 b) { return _mm512_mul_ps(a.v, b.v); }
inline F32 operator/(F32 a, F32 b) { return _mm512_div_ps(a.v, b.v); }
inline F32 multiply_add(F32 a, F32 b, F32 c) { return _mm512_fmadd_ps(a.v, b.v, c.v); }
inline F32 negative_multiply_add(F32 a, F32 b, F32 c) { return _mm512_fnmadd_ps(a.v, b.v, c.v); }
// The second operand when either is NaN, as MAXPS and MINPS do.
inline F32 maximum(F32 a, F32 b) { return _mm512_max_ps(a.v, b.v); }
inline F32 minimum(F32 a, F32 b) { return _mm512_min_ps(a.v, b.v); }
inline F32 absolute(F32 a) { return _mm512_abs_ps(a.v); }
inline F32 nearest_integer(F32 a) { return _mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a · 2^n for an integer-valued n, with gradual underflow and overflow to infinity.
inline F32 scale_by_power(F32 a, F32 n) { return _mm512_scalef_ps(a.v, n.v); }
// x < 0 ? a : b
inline F32 select_negative(F32 x, F32 a, F32 b) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ), b.v, a.v);
}
inline void store(float* dst, F32 a) { _mm512_storeu_ps(dst, a.v); }

inline F64 low_half(F32 a) { return {_mm512_cvtps_pd(_mm512_castps512_ps256(a.v))}; }
inline F64 high_half(F32 a) { return {_mm512_cvtps_pd(_mm512_extractf32x8_ps(a.v, 1))}; }
inline F64 add_square(F64 sum, F64 a) { return {_mm512_fmadd_pd(a.v, a.v, sum.v)}; }
inline void store(double* dst, F64 a) { _mm512_storeu_pd(dst, a.v); }

inline __mmask16 first_lanes(std::int64_t count) {
    return count >= 16 ? static_cast<__mmask16>(0xffff) : static_cast<__mmask16>((1u << count) - 1);
}

inline __m512 widen_bf16(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// Round to nearest even in integer arithmetic: unlike VCVTNEPS2BF16 it keeps subnormals, as the other sets do.
inline __m256i narrow_bf16(__m512 value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, is_nan, quiet), 16));
}

inline F32 round_to_bf16(F32 a) { return widen_bf16(narrow_bf16(a.v)); }

inline F32 F32::load_as(const std::byte* src, DType dtype, std::int64_t count) {
    const __mmask16 lanes = first_lanes(count);
    if (dtype == DType::f32) return _mm512_maskz_loadu_ps(lanes, src);
    const __m256i halves = _mm256_maskz_loadu_epi16(lanes, src);
    return dtype == DType::bf16 ? widen_bf16(halves) : _mm512_cvtph_ps(halves);
}

inline void store_as(std::byte* dst, DType dtype, F32 value, std::int64_t count) {
    const __mmask16 lanes = first_lanes(count);
    if (dtype == DType::f32) {
        _mm512_mask_storeu_ps(dst, lanes, value.v);
        return;
    }
    const __m256i halves =
        dtype == DType::bf16 ? narrow_bf16(value.v) : _mm512_cvtps_ph(value.v, _MM_FROUND_TO_NEAREST_INT);
    _mm256_mask_storeu_epi16(dst, lanes, halves);
}

}  // namespace
}  // namespace fastffn::avx512
