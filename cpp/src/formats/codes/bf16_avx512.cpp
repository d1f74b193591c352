// int4 with bf16 activations on AVX-512 without BF16: codes → f32 by VPERMPS, products and sums in f32.
//   instruction        latency  per cycle    (Zen 4, Intel)
//   vpermps zmm           3-4       1        reads 4 bits of an index: a code
//   vfmadd231ps zmm       4         1-2
#include "core/hadamard.hpp"
#include "core/simd_avx512.hpp"

#include "formats/codes/bf16_multiply.hpp"
#include "formats/codes/bf16_rows.hpp"
#include "formats/common/registers_avx512.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx512 {

namespace {

struct CodesBf16Isa {
    using F32 = avx512::F32;
    using Dot = FmaF32;
    static constexpr HadamardKernel hadamard = avx512::hadamard_row;
    static constexpr int per_panel = 1, line_words = 8;
    static constexpr std::int64_t store_depths = 16;
    static constexpr int chains(int rows) { return rows <= 3 ? 8 : 4; }

    template <bool plain>
    struct Codes {
        __m512 table;
        Codes() {
            alignas(64) float values[16];
            for (int i = 0; i < 16; ++i) values[i] = static_cast<float>(i - (plain ? 8 : 0));
            table = _mm512_load_ps(values);
        }
        static __m512i begin(__m512i packed) { return packed; }
        __m512i word(__m512i packed, int j) const {
            return _mm512_castps_si512(
                _mm512_permutexvar_ps(j ? _mm512_srli_epi32(packed, static_cast<unsigned>(4 * j)) : packed, table));
        }
    };

    static void store(std::byte* dst, __m512i word) { _mm512_storeu_si512(dst, word); }
    static F32 load_f16(const std::byte* src) {
        return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src)));
    }
    static F32 load_u8(const std::byte* src) {
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src))));
    }

    // The j-th code of a line from its lowest bits on is that of depth 4 · (j % 2) + j / 2.
    static void store_words(std::byte* dst, const std::byte* src, DType dtype, std::int64_t count) {
        const __m512i order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
        const __m512 x = count > 0 ? round_to_bf16(F32::load_as(src, dtype, count)).v : _mm512_setzero_ps();
        _mm512_storeu_ps(reinterpret_cast<float*>(dst), _mm512_permutexvar_ps(order, x));
    }
    static float sum_line(const std::byte* words) {
        return _mm512_reduce_add_ps(_mm512_loadu_ps(reinterpret_cast<const float*>(words)));
    }
};

}  // namespace

const FormatKernels int4_bf16_kernels = {
    "int4/avx512base",
    few_rows_limit,
    panels_per_task,
    true,
    false,
    4,
    codes_bf16_prepared_bytes<CodesBf16Isa>,
    codes_bf16_prepare<CodesBf16Isa>,
    codes_bf16_multiply<CodesBf16Isa>,
};

}  // namespace fastffn::avx512
