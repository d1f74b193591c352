// The instructions that int4 with bf16 activations needs, on AVX-512 BF16. Also the few-rows path of the AMX kernel.
//   instruction        latency  per cycle    (Zen 5; Zen 4 half of it on 512 bits)
//   vdpbf16ps zmm         6         2
//   vpermw zmm            4-6       1-2      reads 5 bits of an index, of which a code has 4: the table lies in it twice
//   vpsrlw zmm            1         2
//
// A line has 16 bits per word and column: the codes of depths 0, 4, 1, 5 and, in the upper word, 2, 6, 3, 7. Shifting words by
// 0, 4, 8 and 12 leaves the pairs (0, 2), (4, 6), (1, 3), (5, 7) for the table; rows of activations are stored in that order.
#pragma once

#include "core/hadamard.hpp"
#include "formats/bf16/pairs_avx512bf16.hpp"
#include "formats/codes/layout.hpp"

namespace fastffn {
namespace {

struct CodesBf16Isa {
    using F32 = avx512::F32;
    using Dot = DotBf16;
    static constexpr HadamardKernel hadamard = avx512::hadamard_row;
    static constexpr int per_panel = 1, line_words = 4;
    static constexpr std::int64_t store_depths = 32;
    // Six chains hide the latency of a sum that begins every cycle; 24 registers at most.
    static constexpr int chains(int rows) { return rows <= 3 ? 8 : 4; }

    template <bool plain>
    struct Codes {
        // bf16 of i - 8 or i for i from 0 to 15, twice: integers up to 15 are exact.
        struct Table {
            alignas(64) std::uint16_t bf16[32];
        };
        static constexpr Table make_table() {
            Table table{};
            for (int i = 0; i < 32; ++i) {
                const int value = i % 16 - (plain ? 8 : 0), size = value < 0 ? -value : value;
                int power = 0;
                while (size >> power > 1) ++power;
                const int word = (127 + power) << 7 | (size << 7 >> power & 0x7f);
                table.bf16[i] = static_cast<std::uint16_t>(size ? word | (value < 0 ? 0x8000 : 0) : 0);
            }
            return table;
        }
        __m512i table;
        Codes() {
            static constexpr Table values = make_table();
            table = _mm512_load_si512(values.bf16);
        }
        static __m512i begin(__m512i packed) { return packed; }
        __m512i word(__m512i packed, int j) const {
            return _mm512_permutexvar_epi16(j ? _mm512_srli_epi16(packed, static_cast<unsigned>(4 * j)) : packed,
                                            table);
        }
    };

    static void store(std::byte* dst, __m512i word) { _mm512_storeu_si512(dst, word); }
    static F32 load_f16(const std::byte* src) {
        // gcc 12 warns of its own undefined register in _mm512_cvtph_ps here.
        return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(src)));
    }
    static F32 load_u8(const std::byte* src) {
        return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src))));
    }

    // count: of depths that there are; lanes past them become zeros.
    static void store_words(std::byte* dst, const std::byte* src, DType dtype, std::int64_t count) {
        const __m512i order = _mm512_set_epi16(31, 29, 27, 25, 30, 28, 26, 24, 23, 21, 19, 17, 22, 20, 18, 16, 15, 13,
                                               11, 9, 14, 12, 10, 8, 7, 5, 3, 1, 6, 4, 2, 0);
        auto half = [&](std::int64_t from) {
            if (from >= count) return _mm256_setzero_si256();
            return load_bf16(src + from * element_bytes(dtype), dtype, count - from);
        };
        const __m512i pairs = _mm512_inserti64x4(_mm512_castsi256_si512(half(0)), half(16), 1);
        _mm512_storeu_si512(dst, _mm512_permutexvar_epi16(order, pairs));
    }
    static float sum_line(const std::byte* words) {
        const __m512i pairs = _mm512_loadu_si512(words);
        return _mm512_reduce_add_ps(_mm512_add_ps(Dot::even_bf16(pairs), Dot::odd_bf16(pairs)));
    }
};

}  // namespace
}  // namespace fastffn
