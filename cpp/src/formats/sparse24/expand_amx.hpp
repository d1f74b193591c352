// sparse24 panels as dense AMX tiles: a block of 8 slots becomes one tile of 16 lines (bf16: 32 depths; int8: 64).
//
// TMUL has no sparse mode, so the tiles of a chunk are expanded into a scratch that all rows then share. While the tiles of
// one chunk are multiplied, those of the next are expanded into the other half of the scratch, a few slots at every depth
// tile: the vector units idle there, and a line is stored long before its tile is loaded (a load right after the store waits
// for it: measured 20 against 10.5 ns per tile).
#pragma once

#include "formats/common/tiles_amx.hpp"
#include "formats/sparse24/layout.hpp"
#include "formats/sparse24/picks_avx512.hpp"

namespace fastffn {
namespace {

// A lane's bytes that VPSHUFB takes from the same lane: their numbers in the 16-byte part of the register.
inline __m512i own_bytes() { return _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0); }

// One slot of bf16 values is one group: lines 2·slot and 2·slot + 1 of the tile.
struct ExpandPairs {
    static constexpr Sparse24Values values = Sparse24Values::bf16;
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
    static void slot(const std::byte* block, std::int64_t slot, std::byte* tile) {
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
    static constexpr Sparse24Values values = Sparse24Values::int8;
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
    static void slot(const std::byte* block, std::int64_t slot, std::byte* tile) {
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

// Slots of the next chunk's two panels, to be expanded while this one is multiplied.
template <class Expand>
struct SlotsAhead {
    const std::byte* packed[2];
    std::byte* tiles[2];
    std::int64_t per_step, done, total;

    void step() { run(per_step); }
    void run(std::int64_t count) {
        const std::int64_t end = done + count < total ? done + count : total;
        constexpr std::int64_t block_bytes = Sparse24Layout(Expand::values).block_bytes();
        for (; done < end; ++done) {
            const std::int64_t block = done / block_slots, slot = done % block_slots;
            for (int p = 0; p < 2; ++p)
                Expand::slot(packed[p] + block * block_bytes, slot, tiles[p] + block * tile_bytes);
        }
    }
};

// The source of multiply_tiles() that does so. Panels in pairs: an odd last one is expanded twice.
template <class Expand>
class ExpandedTiles {
  public:
    using Ahead = SlotsAhead<Expand>;
    explicit ExpandedTiles(const TileCallArgs& call) : call_(call) {
        Ahead first = slots(0, 0, 0);
        first.run(first.total);
    }

    const std::byte* tiles(std::int64_t, std::int64_t, std::int64_t) {
        half_ ^= 1;
        return scratch_[half_ ^ 1];
    }
    std::int64_t panel_stride() const { return panel_bytes; }

    Ahead ahead(std::int64_t group, std::int64_t i, std::int64_t in_group, std::int64_t p, std::int64_t steps) {
        std::int64_t next_chunk = group + i + 1, next_panel = p;
        if (i + 1 == in_group) {
            next_panel = p + 2;
            next_chunk = group;
            if (next_panel >= call_.panel_count) {
                next_panel = 0;
                next_chunk = group + group_chunks;
            }
        }
        return slots(next_chunk, next_panel, steps);
    }

  private:
    static constexpr std::int64_t panel_bytes = chunk_tiles * tile_bytes;

    Ahead slots(std::int64_t chunk, std::int64_t p, std::int64_t steps) {
        if (chunk >= call_.layout.chunks()) return {};
        const std::int64_t total = call_.layout.tiles_in_chunk(chunk) * block_slots;
        const std::byte* packed =
            call_.panels + p * call_.panel_bytes + chunk * chunk_tiles * Sparse24Layout(Expand::values).block_bytes();
        return {{packed, p + 1 < call_.panel_count ? packed + call_.panel_bytes : packed},
                {scratch_[half_], scratch_[half_] + panel_bytes},
                steps ? divide_up(total, steps) : total,
                0,
                total};
    }

    const TileCallArgs& call_;
    int half_ = 0;
    alignas(64) std::byte scratch_[2][2 * panel_bytes];
};

}  // namespace
}  // namespace fastffn
