// bf16 with AMX: TDPBF16PS on tiles for many rows, VDPBF16PS for few.
#include "formats/bf16/pair_tiles_amx.hpp"

#include "formats/kernels.hpp"

namespace fastffn::amx {

namespace {

void multiply(const MultiplyArgs& a) noexcept {
    if (a.total_rows <= few_rows_limit) return pairs_multiply(a);
    const std::int64_t depth = a.matrix.in_features,
                       panel_bytes = panel_bytes_of(divide_up(packed_columns(a.matrix), 2), 64);
    const TileCallArgs call{a.prepared,
                            TileLayout(a.total_rows, depth * 2),
                            a.row0 / tile_rows,
                            divide_up(a.rows, tile_rows),
                            a.matrix.payload + a.first_panel * panel_bytes,
                            panel_bytes,
                            a.panels,
                            a.tile,
                            a.tile_stride};
    PackedTiles tiles(call);
    multiply_tiles<PairsProduct>(call, tiles, [](std::int64_t, std::int64_t, std::int64_t, std::int64_t) {});
}

}  // namespace

const FormatKernels bf16_kernels = {
    "bf16/amx",
    few_rows_limit,
    amx_panels_per_task,
    false,
    false,
    2,
    pair_tiles_prepared_bytes,
    pair_tiles_prepare,
    multiply,
    32,
};

}  // namespace fastffn::amx
