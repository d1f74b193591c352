// ternary and int4 in order columns with AVX2.
#include "formats/codes/isa_avx2.hpp"

#include "formats/codes/columns_order.hpp"
#include "formats/kernels.hpp"

namespace fastffn::avx2 {

namespace {

struct ColumnsIsa : CodesIsa {
    static constexpr std::int64_t line_part = 16;  // two registers of quads per field: 8 sums of the 16 registers
    static constexpr int pieces = 2;

    static void interleave(const std::byte* const (&quad)[4], Register (&out)[pieces]) {
        __m128i line[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) line[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(quad[i]));
        const __m128i ab_low = _mm_unpacklo_epi8(line[0], line[1]), ab_high = _mm_unpackhi_epi8(line[0], line[1]);
        const __m128i cd_low = _mm_unpacklo_epi8(line[2], line[3]), cd_high = _mm_unpackhi_epi8(line[2], line[3]);
        out[0] = _mm256_set_m128i(_mm_unpackhi_epi16(ab_low, cd_low), _mm_unpacklo_epi16(ab_low, cd_low));
        out[1] = _mm256_set_m128i(_mm_unpackhi_epi16(ab_high, cd_high), _mm_unpacklo_epi16(ab_high, cd_high));
    }
    // Part p holds outputs 16·i + 4·p + m of a field's 64: eight in a row are four of one part and four of the next.
    template <int fields>
    static Register gather_sums(const std::byte (&line)[4][fields][pieces][32], int field, std::int64_t output) {
        const std::int64_t sixteen = output / 16, part = output % 16 / 4;
        const auto four = [&](std::int64_t p) {
            return _mm_load_si128(reinterpret_cast<const __m128i*>(line[p][field][sixteen / 2] + sixteen % 2 * 16));
        };
        return _mm256_set_m128i(four(part + 1), four(part));
    }
    // The nonzero ones of 16 codes from depth k on: their depths, and the codes.
    static std::int64_t compact(const std::byte* codes, std::int64_t k, std::int32_t* depths, std::byte* values) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
        auto live = static_cast<unsigned>(_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_setzero_si128()))) ^ 0xffffu;
        std::int64_t count = 0;
        for (; live; live &= live - 1) {
            const int lane = __builtin_ctz(live);
            depths[count] = static_cast<std::int32_t>(k + lane);
            values[count++] = codes[lane];
        }
        return count;
    }
};

}  // namespace

const FormatKernels ternary_columns_kernels = columns_kernels<ColumnsIsa, 2>("ternary/avx2");
const FormatKernels int4_columns_kernels = columns_kernels<ColumnsIsa, 4>("int4/avx2");

}  // namespace fastffn::avx2
