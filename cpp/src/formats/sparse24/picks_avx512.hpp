// Codes of sparse24 as shuffles, with AVX-512: one register is 16 columns.
#pragma once

#include <immintrin.h>

#include "core/kernel.hpp"

namespace fastffn {
namespace {

inline __m512i broadcast_8(const std::byte* src) {
    long long value;
    __builtin_memcpy(&value, src, 8);
    return _mm512_set1_epi64(value);
}

// The code of column c in the low bits of lane c; what lies above them differs from lane to lane.
inline __m512i group_picks(const std::byte* codes, int) {
    const __m512i shifts = _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28);
    return _mm512_srlv_epi32(broadcast_8(codes), shifts);
}

inline __m512i shuffle(__m512i bytes, __m512i picks) { return _mm512_shuffle_epi8(bytes, picks); }
inline void store_register(std::byte* dst, __m512i value) { _mm512_storeu_si512(dst, value); }
inline __m512i next_pick(__m512i picks) { return _mm512_srli_epi32(picks, 2); }
inline __m512 as_floats(__m512i bits) { return _mm512_castsi512_ps(bits); }
inline __m512i broadcast_group(const std::byte* x) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
inline __m512i pick(__m512i group, __m512i picks) {
    return _mm512_castps_si512(_mm512_permutevar_ps(_mm512_castsi512_ps(group), picks));
}

// Codes of two groups, as VPSHUFB on the eight bytes of both: (i, j) in the low word of lane c, (4 + i, 4 + j) in the high.
inline __m512i quad_picks(const std::byte* codes, int) {
    const __m512i shifts = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
    // Of a word, VPERMW takes the low five bits: the fifth belongs to another column, and the table repeats.
    alignas(64) static constexpr std::uint16_t pairs[32] = {
        0x000, 0x001, 0x002, 0x003, 0x100, 0x101, 0x102, 0x103, 0x200, 0x201, 0x202, 0x203, 0x300, 0x301, 0x302, 0x303,
        0x000, 0x001, 0x002, 0x003, 0x100, 0x101, 0x102, 0x103, 0x200, 0x201, 0x202, 0x203, 0x300, 0x301, 0x302, 0x303};
    const __m512i each = _mm512_srlv_epi32(broadcast_group(codes), shifts);
    return _mm512_or_si512(_mm512_permutexvar_epi16(each, _mm512_load_si512(pairs)), _mm512_set1_epi32(0x04040000));
}

}  // namespace
}  // namespace fastffn
