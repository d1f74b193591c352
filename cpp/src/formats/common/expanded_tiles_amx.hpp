// Panels of packed weights as AMX tiles that are expanded on the way.
//
// The tiles of a chunk are expanded into a scratch that all rows then share. While the tiles of one chunk are multiplied, those
// of the next are expanded into the other half of the scratch, a few pieces at every depth tile: the vector units idle there,
// and a line is stored long before its tile is loaded (a load right after the store waits for it: measured 20 against 10.5 ns
// per tile).
//
// An Expand brings packed_bytes of a tile, pieces of a tile, and piece(packed, i, tile), which writes the i-th.
#pragma once

#include "formats/common/tiles_amx.hpp"

namespace fastffn {
namespace {

// Pieces of the next chunk's two panels, to be expanded while this one is multiplied.
template <class Expand>
struct PiecesAhead {
    const std::byte* packed[2];
    std::byte* tiles[2];
    std::int64_t per_step, done, total;

    void step() { run(per_step); }
    void run(std::int64_t count) {
        const std::int64_t end = done + count < total ? done + count : total;
        for (; done < end; ++done) {
            const std::int64_t tile = done / Expand::pieces, piece = done % Expand::pieces;
            for (int p = 0; p < 2; ++p)
                Expand::piece(packed[p] + tile * Expand::packed_bytes, piece, tiles[p] + tile * tile_bytes);
        }
    }
};

// The source of multiply_tiles() that does so. Panels in pairs: an odd last one is expanded twice.
template <class Expand>
class ExpandedTiles {
  public:
    using Ahead = PiecesAhead<Expand>;
    explicit ExpandedTiles(const TileCallArgs& call) : call_(call) {
        Ahead first = pieces(0, 0, 0);
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
        return pieces(next_chunk, next_panel, steps);
    }

  private:
    static constexpr std::int64_t panel_bytes = chunk_tiles * tile_bytes;

    Ahead pieces(std::int64_t chunk, std::int64_t p, std::int64_t steps) {
        if (chunk >= call_.layout.chunks()) return {};
        const std::int64_t total = call_.layout.tiles_in_chunk(chunk) * Expand::pieces;
        const std::byte* packed = call_.panels + p * call_.panel_bytes + chunk * chunk_tiles * Expand::packed_bytes;
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
