// int4 with bf16 activations and AMX: codes as tiles of bf16 for many rows (TDPBF16PS), VDPBF16PS for few.
#include "formats/bf16/pair_tiles_amx.hpp"
#include "formats/codes/bf16_isa_avx512bf16.hpp"
#include "formats/codes/bf16_multiply.hpp"
#include "formats/codes/bf16_rows.hpp"
#include "formats/codes/groups_amx.hpp"
#include "formats/kernels.hpp"

namespace fastffn::amx {

namespace {

// Words and sums as CodesBf16Rows has them, but words as tiles and rows padded to whole blocks.
struct Bf16TileRows {
    TileLayout tiles;
    std::int64_t sums, bytes;

    Bf16TileRows(std::int64_t total_rows, std::int64_t words, std::int64_t groups) : tiles(total_rows, words * 4) {
        sums = tiles.bytes();
        bytes = sums + round_up(round_up(total_rows, tile_rows) * groups * 4, 64);
    }
    std::int64_t at(std::int64_t row, std::int64_t word) const { return tiles.line(row, word / 16) + word % 16 * 4; }
};

template <bool plain>
struct Bf16Groups {
    using Product = PairsProduct;
    using Scale = Bf16Scale<CodesBf16Isa, plain>;
    static constexpr std::int64_t line_words = CodesBf16Isa::line_words, line_depths = 8;

    struct Expand {
        CodesBf16Isa::Codes<plain> codes;
        Expand() = default;
        Expand(const CodesLayout<4>&, std::uint32_t, std::int64_t, std::int64_t) {}
        void line(const std::byte* packed, std::byte* lines) const {
            const __m512i of_line = _mm512_loadu_si512(packed);
#pragma GCC unroll 4
            for (int j = 0; j < line_words; ++j) _mm512_storeu_si512(lines + j * 64, codes.word(of_line, j));
        }
    };

    std::uint32_t flags;
    const float* row_sums;  // of the call's first row; `groups` per row

    __m512 add(const Scale& scale, __m512 total, const float* sums, std::int64_t row_group) const {
        return scale.add(total, avx512::F32::load(sums), plain ? 0.0f : row_sums[row_group]).v;
    }
    static __m512 finish(__m512 total, std::int64_t) { return total; }
};

std::int64_t prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    return total_rows <= few_rows_limit ? codes_bf16_prepared_bytes<CodesBf16Isa>(total_rows, matrix)
                                        : codes_bf16_prepared_bytes<CodesBf16Isa, Bf16TileRows>(total_rows, matrix);
}

void prepare(const PrepareArgs& a) noexcept {
    if (a.total_rows <= few_rows_limit) codes_bf16_prepare<CodesBf16Isa>(a);
    else codes_bf16_prepare<CodesBf16Isa, Bf16TileRows>(a);
}

void multiply(const MultiplyArgs& a) noexcept {
    if (a.total_rows <= few_rows_limit) return codes_bf16_multiply<CodesBf16Isa>(a);
    const CodesLayout<4> layout(a.matrix);
    const Bf16TileRows rows(a.total_rows, codes_bf16_words(layout, CodesBf16Isa::line_words), layout.groups);
    const TileCallArgs call{a.prepared,
                            rows.tiles,
                            a.row0 / tile_rows,
                            divide_up(a.rows, tile_rows),
                            layout.panels + a.first_panel * layout.panel_bytes,
                            layout.panel_bytes,
                            a.panels,
                            a.tile,
                            a.tile_stride};
    const auto* sums = reinterpret_cast<const float*>(a.prepared + rows.sums) + a.row0 * layout.groups;
    const std::uint32_t flags = a.matrix.flags;
    if ((flags & codes_zeros_mask) == codes_no_zeros)
        multiply_group_tiles(call, Bf16Groups<true>{flags, sums}, layout, a.first_panel, a.rows);
    else multiply_group_tiles(call, Bf16Groups<false>{flags, sums}, layout, a.first_panel, a.rows);
}

}  // namespace

const FormatKernels int4_bf16_kernels = {
    "int4/amx", few_rows_limit, amx_panels_per_task, true, false, 2, prepared_bytes, prepare, multiply,
};

}  // namespace fastffn::amx
