// ternary and int4 in order rows with AVX-512 VNNI.
#include "formats/codes/isa_avx512vnni.hpp"

#include "formats/codes/rows_order.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx512vnni {

namespace {

struct RowsIsa : CodesIsa {
    static constexpr int most_tokens = 6;  // 24 sums, 4 registers of codes

    // Per 128 bits: lane r holds what is left of register r.
    static __m512i sum_lanes(__m512i a, __m512i b, __m512i c, __m512i d) {
        const __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        const __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
    }
    static void sum4_halves(__m512i a, __m512i b, __m512i c, __m512i d, __m128i* low, __m128i* high) {
        const __m512i lanes = sum_lanes(a, b, c, d);
        const __m256i first = _mm512_castsi512_si256(lanes), second = _mm512_extracti64x4_epi64(lanes, 1);
        *low = _mm_add_epi32(_mm256_castsi256_si128(first), _mm256_extracti128_si256(first, 1));
        *high = _mm_add_epi32(_mm256_castsi256_si128(second), _mm256_extracti128_si256(second, 1));
    }
    static __m128i sum4(__m512i a, __m512i b, __m512i c, __m512i d) {
        const __m512i lanes = sum_lanes(a, b, c, d);
        const __m256i half = _mm256_add_epi32(_mm512_castsi512_si256(lanes), _mm512_extracti64x4_epi64(lanes, 1));
        return _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    }
};

}  // namespace

const FormatKernels ternary_rows_kernels = rows_kernels<RowsIsa, 2>("ternary/avx512vnni");
const FormatKernels int4_rows_kernels = rows_kernels<RowsIsa, 4>("int4/avx512vnni");

}  // namespace fastffn::avx512vnni
