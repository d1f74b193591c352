// ternary and int4 in order rows with AVX2.
#include "formats/codes/isa_avx2.hpp"

#include "formats/codes/rows.hpp"
#include "formats/codes/rows_order.hpp"
#include "formats/common/blocks.hpp"
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

const FormatKernels ternary_rows_kernels = {
    "ternary/avx2",
    few_rows_limit,
    panels_per_task,
    true,
    true,  // groups and the width of activations are the matrix's
    1,
    codes_prepared_bytes<CodesIsa, 2>,
    codes_prepare<CodesIsa, 2>,
    rows_multiply<RowsIsa, 2>,
    0,
    rows_dot<RowsIsa, 2>,
};

const FormatKernels int4_rows_kernels = {
    "int4/avx2",
    few_rows_limit,
    panels_per_task,
    true,
    true,  // groups and the width of activations are the matrix's
    1,
    codes_prepared_bytes<CodesIsa, 4>,
    codes_prepare<CodesIsa, 4>,
    rows_multiply<RowsIsa, 4>,
    0,
    rows_dot<RowsIsa, 4>,
};

}  // namespace fastffn::avx2
