// Tiles of codes whose sums are scaled group by group: int4 and ternary with groups, int8 and bf16 activations alike.
//
//   per two panels and group:  expand the group's tiles, signed and exact, while those of the group before are multiplied
//   per 32 rows:               2×2 tiles of sums over the group, stored to 4 KiB of scratch, scaled, and added to the f32 tile
//
// A group of 128 is 2 depth tiles of int8 or 4 of bf16, 128 and 256 cycles for 32 rows × 32 columns; scaling their 1024 sums
// takes about 200 of the vector units. A group of 32 int8 is half a tile: tiles are configured for that depth then.
//
// A Groups brings Product, Scale (one per panel and group), fields and words of a line, and what differs in loading.
#pragma once

#include "core/fetch.hpp"
#include "formats/common/tiles_amx.hpp"

namespace fastffn {
namespace {

// Lines of the next group's two panels, to be expanded while this one is multiplied.
template <class Groups>
struct GroupAhead {
    typename Groups::Expand expand[2];
    const std::byte* packed[2];
    std::byte* tiles[2];
    std::int64_t per_step, done, lines;

    void step() { run(per_step); }
    void run(std::int64_t count) {
        const std::int64_t end = done + count < lines ? done + count : lines;
        for (; done < end; ++done)
            for (int p = 0; p < 2; ++p) {
                fetch_ahead(packed[p] + done * 64);
                expand[p].line(packed[p] + done * 64, tiles[p] + done * Groups::line_words * 64);
            }
    }
};

template <class Groups, class Layout>
void multiply_group_tiles(const TileCallArgs& call, const Groups& groups, const Layout& layout,
                          std::int64_t first_panel, std::int64_t rows) {
    using Ahead = GroupAhead<Groups>;
    using Product = typename Groups::Product;
    constexpr std::int64_t panel_tiles = 8, panel_stride = panel_tiles * tile_bytes;  // the largest group: 256 pairs
    alignas(64) std::byte expanded[2][2 * panel_stride];
    alignas(64) float sums[2 * tile_rows * 2 * panel_columns];
    constexpr std::int64_t sums_stride = 2 * panel_columns;
    const std::int64_t lines = layout.group / Groups::line_depths, group_bytes = lines * Groups::line_words * 4;
    const std::int64_t tiles = divide_up(group_bytes, 64), steps = divide_up(call.blocks, 2) * tiles;
    int half = 0;
    auto ahead_of = [&](std::int64_t p, std::int64_t g) {
        if (p >= call.panel_count) return Ahead{{}, {}, {}, 0, 0, 0};
        const std::int64_t second = p + 1 < call.panel_count ? p + 1 : p;
        const std::byte* packed = call.panels + g * lines * 64;
        return Ahead{{typename Groups::Expand(layout, groups.flags, first_panel + p, g),
                      typename Groups::Expand(layout, groups.flags, first_panel + second, g)},
                     {packed + p * call.panel_bytes, packed + second * call.panel_bytes},
                     {expanded[half], expanded[half] + panel_stride},
                     divide_up(lines, steps),
                     0,
                     lines};
    };
    Ahead first = ahead_of(0, 0);
    first.run(lines);
    configure_tiles(group_bytes < 64 ? static_cast<int>(group_bytes) : 64);
    for (std::int64_t p = 0; p < call.panel_count; p += 2) {
        const bool two_panels = p + 1 < call.panel_count;
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            const std::byte* b = expanded[half];
            half ^= 1;
            const bool last = g + 1 == layout.groups;
            Ahead ahead = last ? ahead_of(p + 2, 0) : ahead_of(p, g + 1);
            const typename Groups::Scale scales[2] = {
                {layout, groups.flags, ((first_panel + p) * layout.groups + g) * panel_columns},
                {layout, groups.flags, ((first_panel + p + two_panels) * layout.groups + g) * panel_columns}};
            const std::int64_t tile = g * group_bytes / 64, chunk = tile / chunk_tiles;
            const std::int64_t within = tile % chunk_tiles * tile_bytes + g * group_bytes % 64;
            const std::int64_t a_block = call.layout.tiles_in_chunk(chunk) * tile_bytes;
            for (std::int64_t block = 0; block < call.blocks; block += 2) {
                const bool two_blocks = block + 1 < call.blocks;
                const std::byte* a = call.rows + call.layout.offset(call.first_block + block, chunk) + within;
                if (two_blocks && two_panels)
                    tile_block<Product, true, true>(a, a_block, b, panel_stride, tiles, sums, sums_stride, false,
                                                    ahead);
                else if (two_blocks)
                    tile_block<Product, true, false>(a, a_block, b, panel_stride, tiles, sums, sums_stride, false,
                                                     ahead);
                else if (two_panels)
                    tile_block<Product, false, true>(a, a_block, b, panel_stride, tiles, sums, sums_stride, false,
                                                     ahead);
                else
                    tile_block<Product, false, false>(a, a_block, b, panel_stride, tiles, sums, sums_stride, false,
                                                      ahead);
                const std::int64_t row0 = block * tile_rows, end = row0 + (two_blocks ? 2 : 1) * tile_rows;
                for (std::int64_t r = row0; r < (end < rows ? end : rows); ++r)
                    for (int i = 0; i < 1 + two_panels; ++i) {
                        float* total = call.tile + r * call.tile_stride + (p + i) * panel_columns;
                        const __m512 before = g ? _mm512_loadu_ps(total) : _mm512_setzero_ps();
                        const float* sum = sums + (r - row0) * sums_stride + i * panel_columns;
                        const __m512 after = groups.add(scales[i], before, sum, r * layout.groups + g);
                        _mm512_storeu_ps(total, last ? groups.finish(after, r) : after);
                    }
            }
            ahead.run(lines);  // what the steps left
        }
    }
    _tile_release();
}

}  // namespace
}  // namespace fastffn
