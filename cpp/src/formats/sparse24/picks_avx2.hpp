// Codes of sparse24 as shuffles, with AVX2: part 0 of a panel is columns 0 to 7, part 1 the others.
#pragma once

#include <immintrin.h>

#include "core/kernel.hpp"

namespace fastffn {
namespace {

inline __m256i broadcast_8(const std::byte* src) {
    long long value;
    __builtin_memcpy(&value, src, 8);
    return _mm256_set1_epi64x(value);
}

// The code of column c in the low bits of lane c; what lies above them differs from lane to lane.
inline __m256i group_picks(const std::byte* codes, int part) {
    const __m256i shifts =
        part == 0 ? _mm256_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12) : _mm256_setr_epi32(16, 16, 20, 20, 24, 24, 28, 28);
    return _mm256_srlv_epi32(broadcast_8(codes), shifts);
}

inline __m256i shuffle(__m256i bytes, __m256i picks) { return _mm256_shuffle_epi8(bytes, picks); }
inline void store_register(std::byte* dst, __m256i value) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), value);
}
inline __m256i next_pick(__m256i picks) { return _mm256_srli_epi32(picks, 2); }
inline __m256 as_floats(__m256i bits) { return _mm256_castsi256_ps(bits); }
inline __m256i broadcast_group(const std::byte* x) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(x)));
}
inline __m256i pick(__m256i group, __m256i picks) {
    return _mm256_castps_si256(_mm256_permutevar_ps(_mm256_castsi256_ps(group), picks));
}

// Codes of two groups, as VPSHUFB on the eight bytes of both: (i, j) in the low word of lane c, (4 + i, 4 + j) in the high.
inline __m256i quad_picks(const std::byte* codes, int part) {
    const __m256i shifts =
        part == 0 ? _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4) : _mm256_setr_epi32(8, 8, 8, 8, 12, 12, 12, 12);
    const __m256i each = _mm256_and_si256(_mm256_srlv_epi32(broadcast_group(codes), shifts), _mm256_set1_epi16(0xF));
    const __m256i both = _mm256_or_si256(each, _mm256_slli_epi16(each, 6));
    return _mm256_or_si256(_mm256_and_si256(both, _mm256_set1_epi8(3)), _mm256_set1_epi32(0x04040000));
}

}  // namespace
}  // namespace fastffn
