// The AMX inner loop, shared by bf16 (TDPBF16PS) and int8 (TDPBSSD).
//
//   instruction       latency  cycles per    (Sapphire Rapids; Intel's optimisation manual, chapter AMX)
//   tdpbf16ps, tdpbssd   52        16        16 rows × 16 columns × 64 bytes of depth
//   tileloadd            45         8        16 lines of 64 bytes
//   tilestored            -        16
//
// Eight tile registers: a 2×2 block of accumulators (32 rows × 2 panels), two tiles of rows, two of weights. Such a block
// loads 4 KiB for every four products: with both operands in L2 that is 1.24 TFLOP/s of bf16 on a core whose peak is
// 3.6, with the weights in L1 it is 3.1 (measured on a Sapphire Rapids class core; see also chunk_tiles). So the
// reduction runs in chunks whose weights, 2 panels × 8 KiB, stay in L1 while all rows stream over them from L2. Prepared
// rows are laid out in that order, which also keeps rows of a power-of-two depth out of each other's cache sets:
//
//     [chunk][block of 16 rows][tile of 64 bytes of depth][16 rows][64 bytes]
//
// Chunks come in groups whose rows fit L2 next to the tile; a group passes over all panels of the task before the next.
#pragma once

#include <immintrin.h>

#include "core/kernel.hpp"

namespace fastffn {
namespace {

constexpr std::int64_t tile_rows = 16, tile_bytes = 1024;
// Depth tiles per chunk. Rates with A streamed from L2 and B in L1: 4 tiles 3.03, 8 tiles 3.13, 16 tiles 2.54, 32 tiles
// 2.23 TFLOP/s; fewer tiles spill the accumulators more often, so 8.
constexpr std::int64_t chunk_tiles = 8;
// Chunks per group: 256 rows × 4 chunks × 512 bytes are 512 KiB of a 2 MiB L2.
constexpr std::int64_t group_chunks = 4;
// Weights are fetched into L2 this many chunks before their use; with it 1.23 became 1.42–1.53 TFLOP/s on weights that
// come from L3 or memory.
constexpr std::int64_t prefetch_chunks = 2;
constexpr std::int64_t amx_panels_per_task = 8;

struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Every tile whole, or rows of depth_bytes and weights of as many. The barrier makes the stores to the configuration happen: gcc 12 does not know that the instruction
// reads all 64 bytes.
inline void configure_tiles(int depth_bytes = 64) {
    TileConfig config;
    config.row_bytes[4] = config.row_bytes[5] = static_cast<std::uint16_t>(depth_bytes);
    config.rows[6] = config.rows[7] = static_cast<std::uint8_t>(depth_bytes / 4);
    __asm__ volatile("" : : "r"(&config) : "memory");
    _tile_loadconfig(&config);
}

struct TileLayout {
    std::int64_t depth_tiles, row_blocks;

    TileLayout(std::int64_t total_rows, std::int64_t depth_bytes)
        : depth_tiles(divide_up(depth_bytes, 64)), row_blocks(divide_up(total_rows, tile_rows)) {}

    std::int64_t bytes() const { return depth_tiles * row_blocks * tile_bytes; }
    std::int64_t tiles_in_chunk(std::int64_t chunk) const {
        const std::int64_t rest = depth_tiles - chunk * chunk_tiles;
        return rest < chunk_tiles ? rest : chunk_tiles;
    }
    std::int64_t chunks() const { return divide_up(depth_tiles, chunk_tiles); }
    // Offset of the first depth tile of a chunk for one block of rows; its other tiles follow.
    std::int64_t offset(std::int64_t row_block, std::int64_t chunk) const {
        return (chunk * chunk_tiles * row_blocks + row_block * tiles_in_chunk(chunk)) * tile_bytes;
    }
    // Offset of the 64-byte line that holds depth tile `tile` of a row.
    std::int64_t line(std::int64_t row, std::int64_t tile) const {
        const std::int64_t chunk = tile / chunk_tiles;
        return offset(row / tile_rows, chunk) + tile % chunk_tiles * tile_bytes + row % tile_rows * 64;
    }
};

struct TileCallArgs {
    const std::byte* rows;  // prepared rows
    TileLayout layout;
    std::int64_t first_block, blocks;  // of 16 rows
    const std::byte* panels;           // packed panels, from the first of the task on
    std::int64_t panel_bytes, panel_count;
    float* tile;
    std::int64_t tile_stride;
};

// What a chunk fetches for later: `per_step` lines of each of two panels at every depth tile.
struct TilesAhead {
    const std::byte* panels[2];
    std::int64_t lines_per_step;
    std::int64_t done, total;

    void step() {
        std::int64_t lines = total - done < lines_per_step ? total - done : lines_per_step;
        for (const std::byte* panel : panels)
            for (std::int64_t i = 0; i < lines; ++i)
                _mm_prefetch(reinterpret_cast<const char*>(panel + (done + i) * 64), _MM_HINT_T1);
        done += lines;
    }
};

// tiles 0–3: accumulators, 4–5: rows, 6–7: weights. Product is a policy: tdpbf16ps or tdpbssd. ahead.step() does a share of
// what the next chunk needs at every depth tile.
template <class Product, bool two_blocks, bool two_panels, class Ahead>
inline void tile_block(const std::byte* a, std::int64_t a_block, const std::byte* b, std::int64_t b_panel,
                       std::int64_t depth_tiles, float* c, std::int64_t c_stride, bool continues, Ahead& ahead) {
    const std::int64_t c_bytes = c_stride * 4;
    __asm__ volatile("" : : : "memory");  // gcc's tile intrinsics do not say that they touch memory
    if (continues) {
        _tile_loadd(0, c, c_bytes);
        if constexpr (two_panels) _tile_loadd(1, c + 16, c_bytes);
        if constexpr (two_blocks) _tile_loadd(2, c + 16 * c_stride, c_bytes);
        if constexpr (two_blocks && two_panels) _tile_loadd(3, c + 16 * c_stride + 16, c_bytes);
    } else {
        _tile_zero(0);
        if constexpr (two_panels) _tile_zero(1);
        if constexpr (two_blocks) _tile_zero(2);
        if constexpr (two_blocks && two_panels) _tile_zero(3);
    }
    for (std::int64_t k = 0; k < depth_tiles; ++k) {
        const std::byte *a_tile = a + k * tile_bytes, *b_tile = b + k * tile_bytes;
        _tile_loadd(4, a_tile, 64);
        _tile_loadd(6, b_tile, 64);
        Product::template run<0>();
        if constexpr (two_panels) {
            _tile_loadd(7, b_tile + b_panel, 64);
            Product::template run<1>();
        }
        if constexpr (two_blocks) {
            _tile_loadd(5, a_tile + a_block, 64);
            Product::template run<2>();
        }
        if constexpr (two_blocks && two_panels) Product::template run<3>();
        // Rows two depth tiles ahead into L1: 3.03 became 3.28 TFLOP/s.
        for (int line = 0; line < 16; ++line) {
            _mm_prefetch(reinterpret_cast<const char*>(a_tile + 2 * tile_bytes + line * 64), _MM_HINT_T0);
            if constexpr (two_blocks)
                _mm_prefetch(reinterpret_cast<const char*>(a_tile + a_block + 2 * tile_bytes + line * 64), _MM_HINT_T0);
        }
        ahead.step();
    }
    _tile_stored(0, c, c_bytes);
    if constexpr (two_panels) _tile_stored(1, c + 16, c_bytes);
    if constexpr (two_blocks) _tile_stored(2, c + 16 * c_stride, c_bytes);
    if constexpr (two_blocks && two_panels) _tile_stored(3, c + 16 * c_stride + 16, c_bytes);
    __asm__ volatile("" : : : "memory");
}

// Panels whose packed bytes are tiles: read where they lie, fetched prefetch_chunks early.
class PackedTiles {
  public:
    using Ahead = TilesAhead;
    explicit PackedTiles(const TileCallArgs& call) : call_(call) {}

    // Tiles of chunk `group + i` of panel p, and those of panel p + 1 panel_stride() further.
    const std::byte* tiles(std::int64_t group, std::int64_t i, std::int64_t p) const { return at(group + i, p); }
    std::int64_t panel_stride() const { return call_.panel_bytes; }

    // Where the walk will be prefetch_chunks from now: later in this group, or in the next panels.
    TilesAhead ahead(std::int64_t group, std::int64_t i, std::int64_t in_group, std::int64_t p,
                     std::int64_t steps) const {
        std::int64_t next = i + prefetch_chunks, next_panel = p;
        while (next >= in_group && next_panel < call_.panel_count) {
            next -= in_group;
            next_panel += 2;
        }
        const bool has_next = next_panel < call_.panel_count && next < in_group;
        const std::byte* next_b = at(group + next, next_panel);
        const std::int64_t next_lines = has_next ? call_.layout.tiles_in_chunk(group + next) * 16 : 0;
        return {{next_b, next_panel + 1 < call_.panel_count ? next_b + call_.panel_bytes : next_b},
                divide_up(next_lines, steps),
                0,
                next_lines};
    }

  private:
    const std::byte* at(std::int64_t chunk, std::int64_t p) const {
        return call_.panels + p * call_.panel_bytes + chunk * chunk_tiles * tile_bytes;
    }
    const TileCallArgs& call_;
};

// The tile has room for whole blocks of 16 rows. finish(block, blocks, panel, panels) as sums become complete.
template <class Product, class Source, class Finish>
void multiply_tiles(const TileCallArgs& call, Source& source, Finish finish) {
    configure_tiles();
    const TileLayout& layout = call.layout;
    const std::int64_t chunks = layout.chunks();
    for (std::int64_t group = 0; group < chunks; group += group_chunks) {
        const std::int64_t in_group = chunks - group < group_chunks ? chunks - group : group_chunks;
        for (std::int64_t p = 0; p < call.panel_count; p += 2) {
            const bool two_panels = p + 1 < call.panel_count;
            for (std::int64_t i = 0; i < in_group; ++i) {
                const std::int64_t chunk = group + i, tiles = layout.tiles_in_chunk(chunk);
                const std::byte* b = source.tiles(group, i, p);
                const std::int64_t steps = divide_up(call.blocks, 2) * tiles, b_panel = source.panel_stride();
                typename Source::Ahead ahead = source.ahead(group, i, in_group, p, steps);
                for (std::int64_t block = 0; block < call.blocks; block += 2) {
                    const bool two_blocks = block + 1 < call.blocks;
                    const std::byte* a = call.rows + layout.offset(call.first_block + block, chunk);
                    const std::int64_t a_block = tiles * tile_bytes;
                    float* c = call.tile + block * 16 * call.tile_stride + p * 16;
                    const std::int64_t stride = call.tile_stride;
                    if (two_blocks && two_panels)
                        tile_block<Product, true, true>(a, a_block, b, b_panel, tiles, c, stride, chunk > 0, ahead);
                    else if (two_blocks)
                        tile_block<Product, true, false>(a, a_block, b, b_panel, tiles, c, stride, chunk > 0, ahead);
                    else if (two_panels)
                        tile_block<Product, false, true>(a, a_block, b, b_panel, tiles, c, stride, chunk > 0, ahead);
                    else tile_block<Product, false, false>(a, a_block, b, b_panel, tiles, c, stride, chunk > 0, ahead);
                    if (chunk + 1 == chunks) finish(block, two_blocks ? 2 : 1, p, two_panels ? 2 : 1);
                }
            }
        }
    }
    _tile_release();
}

}  // namespace
}  // namespace fastffn
