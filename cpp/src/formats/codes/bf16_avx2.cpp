// int4 with bf16 activations on AVX2: codes → f32 by shifts, products and sums in f32.
//   instruction             latency  per cycle    (Haswell to Zen 5)
//   vpslld, vpsrad, vpsrld     1        1-2
//   vcvtdq2ps, vfmadd231ps     4        1-2, 2
#include "core/hadamard.hpp"
#include "core/simd_avx2.hpp"

#include "formats/codes/bf16_multiply.hpp"
#include "formats/codes/bf16_rows.hpp"
#include "formats/common/registers_avx2.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx2 {

namespace {

struct CodesBf16Isa {
    using F32 = avx2::F32;
    using Dot = FmaF32;
    static constexpr HadamardKernel hadamard = avx2::hadamard_row;
    static constexpr int per_panel = 2, line_words = 8;
    static constexpr std::int64_t store_depths = 8;
    static constexpr int chains(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }

    template <bool plain>
    struct Codes {
        // Code - 8 is code ^ 8 read as four bits with a sign.
        static __m256i begin(__m256i packed) {
            return plain ? _mm256_xor_si256(packed, _mm256_set1_epi8(static_cast<char>(0x88))) : packed;
        }
        static __m256i word(__m256i packed, int j) {
            const __m256i top = j < 7 ? _mm256_slli_epi32(packed, 28 - 4 * j) : packed;
            const __m256i code = plain ? _mm256_srai_epi32(top, 28) : _mm256_srli_epi32(top, 28);
            return _mm256_castps_si256(_mm256_cvtepi32_ps(code));
        }
    };

    static void store(std::byte* dst, __m256i word) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst), word); }
    static F32 load_f16(const std::byte* src) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src)));
    }
    static F32 load_u8(const std::byte* src) {
        return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(src))));
    }

    // The j-th code of a line from its lowest bits on is that of depth 4 · (j % 2) + j / 2.
    static void store_words(std::byte* dst, const std::byte* src, DType dtype, std::int64_t count) {
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        const __m256 x = count > 0 ? round_to_bf16(F32::load_as(src, dtype, count)).v : _mm256_setzero_ps();
        _mm256_storeu_ps(reinterpret_cast<float*>(dst), _mm256_permutevar8x32_ps(x, order));
    }
    static float sum_line(const std::byte* words) {
        const auto* values = reinterpret_cast<const float*>(words);
        alignas(32) float lanes[8];
        _mm256_store_ps(lanes, _mm256_add_ps(_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)));
        return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
    }
};

}  // namespace

const FormatKernels int4_bf16_kernels = {
    "int4/avx2",
    few_rows_limit,
    panels_per_task,
    true,
    false,
    4,
    codes_bf16_prepared_bytes<CodesBf16Isa>,
    codes_bf16_prepare<CodesBf16Isa>,
    codes_bf16_multiply<CodesBf16Isa>,
};

}  // namespace fastffn::avx2
