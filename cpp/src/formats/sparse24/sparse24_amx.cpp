// sparse24 with AMX, values bf16 and int8: tiles expanded for many rows, the select kernels for few.
#include "formats/bf16/pair_tiles_amx.hpp"
#include "formats/int8/quad_tiles_amx.hpp"
#include "formats/sparse24/expand_amx.hpp"
#include "formats/sparse24/select_avx512bf16.hpp"
#include "formats/sparse24/select_avx512vnni.hpp"

#include "formats/kernels.hpp"

namespace fastffn::amx {

namespace {

void prepare_pairs(const PrepareArgs& a) noexcept {
    if (a.total_rows <= few_rows_limit) return select_pairs_prepare(a);
    pair_tiles_prepare(a);
}

// A dense tile multiplies skipped positions by zero, which NaN and infinity in a row turn into NaN: the sums of such a row
// that are not finite are computed again without them. (A finite sum met none.)
void repair(const MultiplyArgs& a, const Sparse24Payload& payload, const TileLayout& layout, std::int64_t row,
            std::int64_t panel) {
    float* sums = a.tile + row * a.tile_stride + panel * panel_columns;
    const __m512 found = _mm512_loadu_ps(sums);
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    const __mmask16 broken = _mm512_cmpeq_epi32_mask(_mm512_and_si512(_mm512_castps_si512(found), exponent), exponent);
    if (!broken) return;
    const std::byte* block = payload.panels + (a.first_panel + panel) * payload.panel_bytes;
    __m512 sum = _mm512_setzero_ps();
    for (std::int64_t tile = 0; tile < payload.blocks; ++tile, block += PairSlots::step_bytes) {
        const std::byte* x = a.prepared + layout.line(a.row0 + row, tile);
        for (int slot = 0; slot < block_slots; ++slot)
            sum = PairSlots::dot(sum, PairSlots::broadcast(x + slot * 8), PairSlots::read(block, slot, 0));
    }
    _mm512_mask_storeu_ps(sums, broken, sum);
}

void multiply_pairs(const MultiplyArgs& a) noexcept {
    if (a.total_rows <= few_rows_limit) return select_pairs_multiply(a);
    const Sparse24Payload payload = sparse24_payload(a.matrix, Sparse24Values::bf16);
    const TileLayout layout(a.total_rows, a.matrix.in_features * 2);
    const TileCallArgs call{a.prepared,
                            layout,
                            a.row0 / tile_rows,
                            divide_up(a.rows, tile_rows),
                            payload.panels + a.first_panel * payload.panel_bytes,
                            payload.panel_bytes,
                            a.panels,
                            a.tile,
                            a.tile_stride};
    ExpandedTiles<ExpandPairs> tiles(call);
    multiply_tiles<PairsProduct>(call, tiles,
                                 [&](std::int64_t block, std::int64_t blocks, std::int64_t panel, std::int64_t panels) {
                                     const std::int64_t last = (block + blocks) * tile_rows;
                                     for (std::int64_t r = block * tile_rows; r < (last < a.rows ? last : a.rows); ++r)
                                         for (std::int64_t p = panel; p < panel + panels; ++p)
                                             repair(a, payload, layout, r, p);
                                 });
}

void multiply_quads(const MultiplyArgs& a) noexcept {
    if (a.total_rows <= few_rows_limit) return select_quads_multiply(a);
    // Rows with NaN or infinity have codes of 0 and a scale of NaN: nothing to repair.
    quad_tiles_multiply_as<ExpandedTiles<ExpandQuads>>(a,
                                                       int8_sections(sparse24_payload(a.matrix, Sparse24Values::int8)));
}

}  // namespace

const FormatKernels sparse24_bf16_kernels = {
    "sparse24/amx", few_rows_limit, amx_panels_per_task, false, false, 2, pair_tiles_prepared_bytes,
    prepare_pairs,  multiply_pairs,
};
const FormatKernels sparse24_int8_kernels = {
    "sparse24/amx",     few_rows_limit, amx_panels_per_task, true, false, 1, quad_tiles_prepared_bytes,
    quad_tiles_prepare, multiply_quads,
};

}  // namespace fastffn::amx
