// ternary and int4 with AMX: codes as tiles of s8 for many rows (TDPBSSD), the VNNI kernels for few.
//
// Codes become signed as they are expanded, zero points taken off: sums are exact and need no correction, and results have the
// bits of the other instruction sets.
#include "formats/codes/groups_amx.hpp"
#include "formats/codes/isa_avx512vnni.hpp"
#include "formats/codes/multiply.hpp"
#include "formats/codes/rows.hpp"
#include "formats/common/expanded_tiles_amx.hpp"
#include "formats/int8/quad_tiles_amx.hpp"
#include "formats/kernels.hpp"

namespace fastffn::amx {

namespace {

// Codes, scales and sums as CodesRows has them, but codes as tiles and rows padded to whole blocks.
struct CodesTileRows {
    TileLayout tiles;
    std::int64_t scales, sums, bytes;

    CodesTileRows(std::int64_t total_rows, std::int64_t padded_depth, std::int64_t groups)
        : tiles(total_rows, padded_depth) {
        const std::int64_t rows = round_up(total_rows, tile_rows);
        scales = tiles.bytes();
        sums = scales + rows * 4;
        bytes = sums + round_up(rows * groups * 4, 64);
    }
    std::int64_t at(std::int64_t row, std::int64_t k) const { return tiles.line(row, k / 64) + k % 64; }
};

// A line of codes → a word per field: lines of a tile. Zeros in all four bytes of a column.
template <int bits>
void expand_line(const std::byte* packed, __m512i zeros, std::byte* lines) {
    const __m512i codes = _mm512_loadu_si512(packed);
#pragma GCC unroll 4
    for (int f = 0; f < CodeTraits<bits>::fields; ++f)
        _mm512_storeu_si512(lines + f * 64, _mm512_sub_epi8(CodesIsa::field<bits>(codes, f), zeros));
}

// One scale per column: tiles of the whole depth, as int8 has them.
template <int bits>
struct ExpandCodes {
    static constexpr std::int64_t packed_bytes = 64 / CodeTraits<bits>::depths_per_line * 64;
    static constexpr std::int64_t pieces = packed_bytes / 64;
    static void piece(const std::byte* packed, std::int64_t line, std::byte* tile) {
        expand_line<bits>(packed + line * 64, _mm512_set1_epi8(CodeTraits<bits>::zero),
                          tile + line * CodeTraits<bits>::fields * 64);
    }
};

template <int bits, bool minima>
struct CodeGroups {
    using Product = QuadsProduct;
    using Scale = GroupScale<CodesIsa, bits, !minima>;
    static constexpr std::int64_t line_words = CodeTraits<bits>::fields,
                                  line_depths = CodeTraits<bits>::depths_per_line;

    struct Expand {
        __m512i zeros;
        Expand() : zeros(_mm512_setzero_si512()) {}
        Expand(const CodesLayout<bits>& layout, std::uint32_t flags, std::int64_t panel, std::int64_t g)
            : zeros(_mm512_set1_epi8(minima ? 0 : CodeTraits<bits>::zero)) {
            if ((flags & codes_zeros_mask) == codes_zero_points)
                zeros =
                    _mm512_mullo_epi32(CodesIsa::load_u8(layout.zeros + (panel * layout.groups + g) * panel_columns),
                                       _mm512_set1_epi32(0x01010101));
        }
        void line(const std::byte* packed, std::byte* lines) const { expand_line<bits>(packed, zeros, lines); }
    };

    std::uint32_t flags;
    const float* row_scales;       // of the call's first row
    const std::int32_t* row_sums;  // likewise; `groups` per row

    __m512 add(const Scale& scale, __m512 total, const float* sums, std::int64_t row_group) const {
        return scale.add(total, _mm512_loadu_si512(sums), minima ? row_sums[row_group] : 0).v;
    }
    __m512 finish(__m512 total, std::int64_t row) const {
        return _mm512_mul_ps(total, _mm512_set1_ps(row_scales[row]));
    }
};

template <int bits>
std::int64_t prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    return total_rows <= few_rows_limit ? codes_prepared_bytes<CodesIsa, bits>(total_rows, matrix)
                                        : codes_prepared_bytes<CodesIsa, bits, CodesTileRows>(total_rows, matrix);
}

template <int bits>
void prepare(const PrepareArgs& a) noexcept {
    if (a.total_rows <= few_rows_limit) codes_prepare<CodesIsa, bits>(a);
    else codes_prepare<CodesIsa, bits, CodesTileRows>(a);
}

template <int bits>
void multiply(const MultiplyArgs& a) noexcept {
    if (a.total_rows <= few_rows_limit) return codes_multiply<CodesIsa, bits>(a);
    const CodesLayout<bits> layout(a.matrix);
    if (!layout.group)
        return quad_tiles_multiply_as<ExpandedTiles<ExpandCodes<bits>>>(
            a, {layout.scales, nullptr, layout.panels, layout.panel_bytes});
    const CodesTileRows rows(a.total_rows, layout.padded_depth, layout.groups);
    const TileCallArgs call{a.prepared,
                            rows.tiles,
                            a.row0 / tile_rows,
                            divide_up(a.rows, tile_rows),
                            layout.panels + a.first_panel * layout.panel_bytes,
                            layout.panel_bytes,
                            a.panels,
                            a.tile,
                            a.tile_stride};
    const auto* scales = reinterpret_cast<const float*>(a.prepared + rows.scales) + a.row0;
    const auto* sums = reinterpret_cast<const std::int32_t*>(a.prepared + rows.sums) + a.row0 * layout.groups;
    const std::uint32_t flags = a.matrix.flags;
    if ((flags & codes_zeros_mask) == codes_minima)
        multiply_group_tiles(call, CodeGroups<bits, true>{flags, scales, sums}, layout, a.first_panel, a.rows);
    else multiply_group_tiles(call, CodeGroups<bits, false>{flags, scales, sums}, layout, a.first_panel, a.rows);
}

}  // namespace

const FormatKernels ternary_kernels = {
    "ternary/amx", few_rows_limit, amx_panels_per_task, true, false, 1, prepared_bytes<2>, prepare<2>, multiply<2>,
};
const FormatKernels int4_kernels = {
    "int4/amx", few_rows_limit, amx_panels_per_task, true, false, 1, prepared_bytes<4>, prepare<4>, multiply<4>,
};

}  // namespace fastffn::amx
