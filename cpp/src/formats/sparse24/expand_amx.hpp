// sparse24 panels as dense AMX tiles: a block of 8 slots becomes one tile of 16 lines (bf16: 32 depths; int8: 64).
//
// TMUL has no sparse mode, so tiles are expanded first: see expanded_tiles_amx.hpp.
#pragma once

#include "formats/common/expanded_tiles_amx.hpp"
#include "formats/sparse24/layout.hpp"
#include "formats/sparse24/picks_avx512.hpp"

namespace fastffn {
namespace {

// A lane's bytes that VPSHUFB takes from the same lane: their numbers in the 16-byte part of the register.
inline __m512i own_bytes() { return _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0); }

// One slot of bf16 values is one group: lines 2·slot and 2·slot + 1 of the tile.
struct ExpandPairs {
    static constexpr std::int64_t pieces = block_slots,
                                  packed_bytes = Sparse24Layout(Sparse24Values::bf16).block_bytes();
    // Where codes i | j << 2 put the kept pair, as bytes of its dword; 0x80 and above give zero. Codes that are no pair, as
    // damaged weights may have, put the second over the first.
    static constexpr std::uint32_t half_line(int code, int first) {
        std::uint32_t bytes = 0x80808080u;
        for (int which = 0; which < 2; ++which) {
            const int position = (code >> (2 * which) & 3) - first;
            if (position < 0 || position > 1) continue;
            const std::uint32_t pair = which == 0 ? 0x0100u : 0x0302u;
            bytes = (bytes & ~(0xFFFFu << (16 * position))) | pair << (16 * position);
        }
        return bytes;
    }
    struct Table {
        alignas(64) std::uint32_t low[16], high[16];
    };
    static constexpr Table make_table() {
        Table table{};
        for (int code = 0; code < 16; ++code) {
            table.low[code] = half_line(code, 0);
            table.high[code] = half_line(code, 2);
        }
        return table;
    }
    static void piece(const std::byte* block, std::int64_t slot, std::byte* tile) {
        static constexpr Table table = make_table();
        const __m512i codes = group_picks(block + slot * 8, 0);
        const __m512i pairs = _mm512_loadu_si512(block + 64 + slot * 64);
        const __m512i low = _mm512_permutexvar_epi32(codes, _mm512_load_si512(table.low));
        const __m512i high = _mm512_permutexvar_epi32(codes, _mm512_load_si512(table.high));
        store_register(tile + slot * 128, shuffle(pairs, _mm512_or_si512(low, own_bytes())));
        store_register(tile + slot * 128 + 64, shuffle(pairs, _mm512_or_si512(high, own_bytes())));
    }
};

// One slot of int8 values is two groups: a line each.
struct ExpandQuads {
    static constexpr std::int64_t pieces = block_slots,
                                  packed_bytes = Sparse24Layout(Sparse24Values::int8).block_bytes();
    static constexpr std::uint32_t line(int code, int half) {
        std::uint32_t bytes = 0x80808080u;
        for (int which = 0; which < 2; ++which) {
            const int position = code >> (2 * which) & 3;
            bytes = (bytes & ~(0xFFu << (8 * position))) | static_cast<std::uint32_t>(2 * half + which)
                                                               << (8 * position);
        }
        return bytes;
    }
    struct Table {
        alignas(64) std::uint32_t first[16], second[16];
    };
    static constexpr Table make_table() {
        Table table{};
        for (int code = 0; code < 16; ++code) {
            table.first[code] = line(code, 0);
            table.second[code] = line(code, 1);
        }
        return table;
    }
    static void piece(const std::byte* block, std::int64_t slot, std::byte* tile) {
        static constexpr Table table = make_table();
        const __m512i shifts = _mm512_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12);
        const __m512i codes = _mm512_srlv_epi32(broadcast_group(block + slot * 16), shifts);
        const __m512i quads = _mm512_loadu_si512(block + 128 + slot * 64);
        const __m512i first = _mm512_permutexvar_epi32(codes, _mm512_load_si512(table.first));
        const __m512i second = _mm512_permutexvar_epi32(_mm512_srli_epi32(codes, 16), _mm512_load_si512(table.second));
        store_register(tile + slot * 128, shuffle(quads, _mm512_or_si512(first, own_bytes())));
        store_register(tile + slot * 128 + 64, shuffle(quads, _mm512_or_si512(second, own_bytes())));
    }
};

}  // namespace
}  // namespace fastffn
