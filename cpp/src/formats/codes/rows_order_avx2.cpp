// ternary and int4 in order rows with AVX2.
#include "formats/codes/isa_avx2.hpp"

#include "formats/codes/rows_order.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx2 {

namespace {

struct RowsIsa : CodesIsa {
    static constexpr int most_tokens = 2;  // 8 sums of the 16 registers

    static __m128i sum4(__m256i a, __m256i b, __m256i c, __m256i d) {
        const __m256i lanes = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
        return _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    }
    // No group is smaller than a register.
    static void sum4_halves(__m256i, __m256i, __m256i, __m256i, __m128i* low, __m128i* high) {
        *low = *high = _mm_setzero_si128();
    }
};

}  // namespace

const FormatKernels ternary_rows_kernels = rows_kernels<RowsIsa, 2>("ternary/avx2");
const FormatKernels int4_rows_kernels = rows_kernels<RowsIsa, 4>("int4/avx2");

}  // namespace fastffn::avx2
