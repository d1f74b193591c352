// ternary and int4 in order columns with AVX-512 VNNI.
//   instruction            latency  per cycle    (Zen 4; Zen 5 twice as many)
//   vpunpcklbw, ... zmm       1         1        eight make four lines into sixteen quads per 128 bits
//   vpcompressd zmm           5        1/2       into a register; to memory it takes 100 cycles
#include "formats/codes/isa_avx512vnni.hpp"

#include "formats/codes/columns_order.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx512vnni {

namespace {

struct ColumnsIsa : CodesIsa {
    static constexpr std::int64_t line_part = 64;
    static constexpr int pieces = 4;

    static void interleave(const std::byte* const (&quad)[4], Register (&out)[pieces]) {
        const __m512i a = load(quad[0]), b = load(quad[1]);
        const __m512i c = load(quad[2]), d = load(quad[3]);
        const __m512i ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
        const __m512i cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
        out[0] = _mm512_unpacklo_epi16(ab_low, cd_low);
        out[1] = _mm512_unpackhi_epi16(ab_low, cd_low);
        out[2] = _mm512_unpacklo_epi16(ab_high, cd_high);
        out[3] = _mm512_unpackhi_epi16(ab_high, cd_high);
    }
    template <int fields>
    static Register gather_sums(const std::byte (&line)[1][fields][pieces][64], int field, std::int64_t output) {
        return load(line[0][field][output / 16]);
    }
    // The nonzero ones of 16 codes from depth k on: their depths, and the codes. Writes whole registers.
    static std::int64_t compact(const std::byte* codes, std::int64_t k, std::int32_t* depths, std::byte* values) {
        const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
        const __mmask16 live = _mm512_test_epi32_mask(wide, wide);
        const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512i all = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<std::int32_t>(k)));
        _mm512_storeu_si512(depths, _mm512_maskz_compress_epi32(live, all));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(values),
                         _mm512_cvtepi32_epi8(_mm512_maskz_compress_epi32(live, wide)));
        return __builtin_popcount(live);
    }
};

}  // namespace

const FormatKernels ternary_columns_kernels = columns_kernels<ColumnsIsa, 2>("ternary/avx512vnni");
const FormatKernels int4_columns_kernels = columns_kernels<ColumnsIsa, 4>("int4/avx512vnni");

}  // namespace fastffn::avx512vnni
