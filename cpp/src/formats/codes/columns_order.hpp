// Products with codes in order columns (layout.hpp), written once for AVX2 and AVX-512 VNNI: activations whose code is zero are
// not multiplied, and their weights not read. For inputs with many zeros, as the hidden row of a relu² layer.
//
//   prepare    codes as for panels, and per row the list of nonzero ones in quads: their depths, and words of codes
//   multiply   the lines of four columns interleaved by bytes are quads of weights per output, which meet the word. A few lines of
//              32 quads stay in L1; the sums of one line stay in registers while it passes over these.
//
// Beside what multiply.hpp and rows.hpp want, an Isa brings: line_part (bytes of a line that a pass takes), pieces (registers that
// four such parts make), interleave and compact.
#pragma once

#include <immintrin.h>

#include "formats/codes/multiply.hpp"
#include "formats/codes/rows.hpp"

namespace fastffn {
namespace {

// Quads that are multiplied together, and before that fetched into L2 together: 4 lines of each are 32 KiB. What is skipped is
// foreseen by no hardware. One Zen 4 core, a third of the columns, from memory: 256 bytes of each come at 8.8 GB/s, 64 at 5.8.
constexpr std::int64_t piece_quads = 32;
// Lines of a column that are multiplied together, at most.
constexpr std::int64_t most_lines = 4;

// Behind the codes of all rows: per row and group the quads' begin, and for each quad four depths and a word.
struct ColumnsRows {
    CodesRows codes;
    std::int64_t begins_stride, depths_stride, words_stride;  // bytes from row to row
    std::int64_t begins, depths, words, bytes;

    ColumnsRows(std::int64_t total_rows, std::int64_t padded_depth, std::int64_t groups)
        : codes(total_rows, padded_depth, groups) {
        constexpr std::int64_t slack = 64;  // whole registers are stored behind the last entry
        begins_stride = round_up((groups + 1) * 4, 64);
        depths_stride = padded_depth * 4 + slack;
        words_stride = padded_depth + slack;
        begins = round_up(codes.bytes, 64);
        depths = begins + total_rows * begins_stride;
        words = depths + total_rows * depths_stride;
        bytes = words + total_rows * words_stride;
    }
};

struct ColumnsRow {
    std::int32_t* begins;  // groups + 1
    std::int32_t* depths;
    std::byte* words;

    ColumnsRow(const ColumnsRows& rows, std::byte* prepared, std::int64_t row)
        : begins(reinterpret_cast<std::int32_t*>(prepared + rows.begins + row * rows.begins_stride)),
          depths(reinterpret_cast<std::int32_t*>(prepared + rows.depths + row * rows.depths_stride)),
          words(prepared + rows.words + row * rows.words_stride) {}
};

template <class Isa, int bits>
std::int64_t columns_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const CodesLayout<bits> layout(matrix);
    return ColumnsRows(total_rows, layout.padded_depth, layout.groups).bytes +
           codes_transformed_bytes(total_rows, matrix);
}

template <class Isa, int bits>
void columns_prepare(const PrepareArgs& a) noexcept {
    codes_prepare<Isa, bits, CodesRows, ColumnsRows>(a);
    const CodesLayout<bits> layout(*a.matrix);
    const ColumnsRows rows(a.total_rows, layout.padded_depth, layout.groups);
    const std::int64_t group = layout.group ? layout.group : layout.padded_depth;
    for (std::int64_t r = a.row0; r < a.row0 + a.rows; ++r) {
        const std::byte* codes = a.prepared + r * rows.codes.stride;
        const ColumnsRow row(rows, a.prepared, r);
        std::int64_t count = 0;
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            row.begins[g] = static_cast<std::int32_t>(count / 4);
            for (std::int64_t k = g * group; k < (g + 1) * group; k += 16)
                count += Isa::compact(codes + k, k, row.depths + count, row.words + count);
            for (; count % 4 != 0; ++count) {  // zeros fill the last quad
                row.depths[count] = row.depths[count - 1];
                row.words[count] = std::byte{0};
            }
        }
        row.begins[layout.groups] = static_cast<std::int32_t>(count / 4);
    }
}

// Sums of `lines` lines, most_lines at most, in the Isa's order of registers and with fields in place.
template <class Isa, int bits>
struct LineSums {
    static constexpr int fields = CodeTraits<bits>::fields, parts = 64 / Isa::line_part;
    static constexpr bool in_place = Isa::template in_place<bits>;
    alignas(64) std::byte lanes[most_lines][parts][fields][Isa::pieces][Isa::register_bytes];

    // Adds Σ code · x over quads [begin, end), `first` from zero on; fetches those behind them, up to `last`.
    void add(const std::byte* line0, std::int64_t lines, std::int64_t column_bytes, const ColumnsRow& row,
             std::int64_t begin, std::int64_t end, std::int64_t last, bool first) {
        std::int64_t fetch_quad = end, fetch_line = 0;
        const std::int64_t fetch_end = end + (end - begin) < last ? end + (end - begin) : last;
        for (std::int64_t line = 0; line < lines; ++line)
            for (int part = 0; part < parts; ++part) {
                typename Isa::Register acc[fields][Isa::pieces];
#pragma GCC unroll 4
                for (int f = 0; f < fields; ++f)
#pragma GCC unroll 4
                    for (int i = 0; i < Isa::pieces; ++i)
                        acc[f][i] = first ? Isa::zero() : Isa::load(lanes[line][part][f][i]);
                const std::byte* at = line0 + line * 64 + part * Isa::line_part;
                for (std::int64_t q = begin; q < end; ++q) {
                    if (part == 0 &&
                        fetch_quad < fetch_end) {  // the quads' lines one by one, as many as are multiplied
#pragma GCC unroll 4
                        for (int i = 0; i < 4; ++i)
                            _mm_prefetch(reinterpret_cast<const char*>(line0 + fetch_line * 64 +
                                                                       row.depths[fetch_quad * 4 + i] * column_bytes),
                                         _MM_HINT_T1);
                        if (++fetch_line == lines) {
                            fetch_line = 0;
                            ++fetch_quad;
                        }
                    }
                    const std::byte* quad[4];
#pragma GCC unroll 4
                    for (int i = 0; i < 4; ++i) quad[i] = at + row.depths[q * 4 + i] * column_bytes;
                    typename Isa::Register codes[Isa::pieces];
                    Isa::interleave(quad, codes);
                    const typename Isa::Register word = Isa::broadcast(row.words + q * 4);
#pragma GCC unroll 4
                    for (int f = 0; f < fields; ++f)
#pragma GCC unroll 4
                        for (int i = 0; i < Isa::pieces; ++i)
                            acc[f][i] = Isa::Dot::dot(acc[f][i], word,
                                                      in_place ? Isa::template masked<bits>(codes[i], f)
                                                               : Isa::template field<bits>(codes[i], f));
                }
#pragma GCC unroll 4
                for (int f = 0; f < fields; ++f)
#pragma GCC unroll 4
                    for (int i = 0; i < Isa::pieces; ++i) Isa::store(lanes[line][part][f][i], acc[f][i]);
            }
    }
    // The first `width` of 16 outputs from `output` on, a multiple of the registers' lanes: exact sums in their order.
    typename Isa::Register sums(std::int64_t output) const {
        const std::int64_t line = output / CodeTraits<bits>::line_codes;
        const int field = static_cast<int>(output % CodeTraits<bits>::line_codes / 64);
        const auto sum = Isa::template gather_sums<fields>(lanes[line], field, output % 64);
        return in_place ? Isa::shift_right(sum, field * bits) : sum;
    }
};

template <class Isa, int bits>
void columns_multiply(const MultiplyArgs& a) noexcept {
    using F32 = typename Isa::F32;
    constexpr std::int64_t line_panels = CodeTraits<bits>::line_codes / panel_columns;
    const CodesLayout<bits> layout(a.matrix);
    const CodesCall call = codes_call(a, layout);
    const ColumnsRows rows(a.total_rows, layout.padded_depth, layout.groups);
    LineSums<Isa, bits> sums;
    const std::int64_t end_panel = a.first_panel + a.panels, end_line = divide_up(end_panel, line_panels);
    for (std::int64_t line = a.first_panel / line_panels; line < end_line; line += most_lines) {
        const std::int64_t lines = end_line - line < most_lines ? end_line - line : most_lines;
        const std::int64_t lines_panel = line * line_panels;
        const std::int64_t begin_panel = lines_panel > a.first_panel ? lines_panel : a.first_panel;
        const std::int64_t past =
            lines_panel + lines * line_panels < end_panel ? lines_panel + lines * line_panels : end_panel;
        for (std::int64_t r = 0; r < a.rows; ++r) {
            const ColumnsRow row(rows, const_cast<std::byte*>(a.prepared), a.row0 + r);
            const F32 row_scale(call.row_scales[r]);
            float* tile = a.tile + r * a.tile_stride - a.first_panel * panel_columns;
            const std::int64_t last = row.begins[layout.groups];
            for (std::int64_t g = 0; g < layout.groups; ++g) {
                const std::int64_t begin = row.begins[g], end = row.begins[g + 1];
                for (std::int64_t q = begin; q == begin || q < end; q += piece_quads)
                    sums.add(layout.panels + line * 64, lines, layout.column_bytes, row, q,
                             end - q < piece_quads ? end : q + piece_quads, last, q == begin);
                const std::int32_t row_sum = call.row_sums[r * layout.groups + g];
                for (std::int64_t o = begin_panel * panel_columns; o < past * panel_columns; o += F32::width) {
                    const auto sum = sums.sums(o - lines_panel * panel_columns);
                    if (!layout.group) {
                        const F32 scale = F32::load(reinterpret_cast<const float*>(layout.scales) + o);
                        const auto zero = Isa::set(CodeTraits<bits>::zero * row_sum);
                        store(tile + o, Isa::to_f32(Isa::sub(sum, zero)) * (row_scale * scale));
                        continue;
                    }
                    const GroupScale<Isa, bits, false> scale(
                        layout, a.matrix.flags,
                        (o / panel_columns * layout.groups + g) * panel_columns + o % panel_columns);
                    const F32 total = scale.add(g ? F32::load(tile + o) : F32(0.0f), sum, row_sum);
                    store(tile + o, g + 1 == layout.groups ? total * row_scale : total);
                }
            }
        }
    }
}

// The kernels of one instruction set, from its ColumnsIsa.
template <class Isa, int bits>
constexpr FormatKernels columns_kernels(const char* name) {
    constexpr std::int64_t line_panels = CodeTraits<bits>::line_codes / panel_columns;
    return {name,
            few_rows_limit,
            line_panels,
            true,
            true,  // groups and the width of activations are the matrix's
            6,     // a code, and for nonzero ones its depth and place in a word
            columns_prepared_bytes<Isa, bits>,
            columns_prepare<Isa, bits>,
            columns_multiply<Isa, bits>,
            0,
            nullptr,
            line_panels};
}

}  // namespace
}  // namespace fastffn
