// Rows of int8 quads as AMX tiles, for every format that multiplies with TDPBSSD; few rows as VPDPBUSD wants them.
#pragma once

#include "formats/common/tiles_amx.hpp"
#include "formats/int8/quads_avx512vnni.hpp"

namespace fastffn {
namespace {

struct QuadsProduct {
    template <int accumulator>
    static void run() {
        if constexpr (accumulator == 0) _tile_dpbssd(0, 4, 6);
        if constexpr (accumulator == 1) _tile_dpbssd(1, 4, 7);
        if constexpr (accumulator == 2) _tile_dpbssd(2, 5, 6);
        if constexpr (accumulator == 3) _tile_dpbssd(3, 5, 7);
    }
};

// Tiles of codes, then one f32 scale per row, padded to whole blocks of rows.
inline std::int64_t quad_tiles_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const std::int64_t depth = matrix.in_features;
    if (total_rows <= few_rows_limit) return quads_prepared_bytes(total_rows, matrix);
    return TileLayout(total_rows, depth).bytes() + round_up(total_rows, tile_rows) * 4;
}

inline void quad_tiles_prepare(const PrepareArgs& a) noexcept {
    if (a.total_rows <= few_rows_limit) return quads_prepare(a);
    const TileLayout layout(a.total_rows, a.depth);
    auto* scales = reinterpret_cast<float*>(a.prepared + layout.bytes());
    const std::int64_t bytes = element_bytes(a.dtype);
    for (std::int64_t r = 0; r < a.rows; ++r) {
        const std::byte* src = a.src + r * a.src_stride;
        const RowScale scale = row_scale(src, a.dtype, a.depth);
        const __m512 inverse = _mm512_set1_ps(scale.inverse);
        for (std::int64_t k = 0; k < layout.depth_tiles * 64; k += 16) {
            std::byte* dst = a.prepared + layout.line(a.row0 + r, k / 64) + k % 64;
            const __m128i codes =
                k < a.depth ? quantise(src + k * bytes, a.dtype, a.depth - k, inverse) : _mm_setzero_si128();
            _mm_storeu_si128(reinterpret_cast<__m128i*>(dst), codes);
        }
        scales[a.row0 + r] = scale.scale;
    }
}

// Rows prepared so, times the tiles of a source that is made for this call.
template <class Source>
void quad_tiles_multiply_as(const MultiplyArgs& a, const Int8Layout& layout) noexcept {
    const TileLayout tiles(a.total_rows, a.matrix.in_features);
    const auto* scales = reinterpret_cast<const float*>(a.prepared + tiles.bytes()) + a.row0;
    auto finish = [&](std::int64_t block, std::int64_t blocks, std::int64_t panel, std::int64_t panels) {
        const std::int64_t last = (block + blocks) * tile_rows;
        for (std::int64_t p = panel; p < panel + panels; ++p) {
            const __m512 column_scale = _mm512_loadu_ps(layout.scales + (a.first_panel + p) * 64);
            for (std::int64_t r = block * tile_rows; r < (last < a.rows ? last : a.rows); ++r) {
                float* tile = a.tile + r * a.tile_stride + p * 16;
                _mm512_storeu_ps(tile, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(tile)),
                                                     _mm512_mul_ps(_mm512_set1_ps(scales[r]), column_scale)));
            }
        }
    };
    const TileCallArgs call{a.prepared,
                            tiles,
                            a.row0 / tile_rows,
                            divide_up(a.rows, tile_rows),
                            layout.panels + a.first_panel * layout.panel_bytes,
                            layout.panel_bytes,
                            a.panels,
                            a.tile,
                            a.tile_stride};
    Source source(call);
    multiply_tiles<QuadsProduct>(call, source, finish);
}

}  // namespace
}  // namespace fastffn
