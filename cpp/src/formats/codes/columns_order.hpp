// Products with codes in order columns (layout.hpp), written once for AVX2 and AVX-512 VNNI: activations whose code is zero are
// not multiplied, and their weights not read. For inputs with many zeros, as the hidden row of a relu² layer.
//
//   prepare    codes as for panels, and per row the list of nonzero ones in quads: offsets of their lines, and words of codes
//   multiply   a block of 64·fields outputs at a time: the lines of a quad interleaved by bytes are quads of weights per output,
//              which meet the word; the block's sums stay in registers over the whole list
//
// Beside what multiply.hpp and rows.hpp want, an Isa brings: line_part (bytes of a line that a pass takes), pieces (registers that
// four such parts make), interleave, store_sums and compact.
#pragma once

#include <immintrin.h>

#include "formats/codes/multiply.hpp"
#include "formats/codes/rows.hpp"

namespace fastffn {
namespace {

// Lines lie apart by what is skipped, which no hardware foresees: they are fetched this many quads ahead.
constexpr std::int64_t column_quads_ahead = 8;

// Behind the codes of all rows: per row and group the quads' begin, offsets [4] and a word for each quad.
struct ColumnsRows {
    CodesRows codes;
    std::int64_t begins_stride, offsets_stride, words_stride;  // bytes from row to row
    std::int64_t begins, offsets, words, bytes;

    ColumnsRows(std::int64_t total_rows, std::int64_t padded_depth, std::int64_t groups)
        : codes(total_rows, padded_depth, groups) {
        constexpr std::int64_t slack = 64;  // whole registers are stored behind the last entry
        begins_stride = round_up((groups + 1) * 4, 64);
        offsets_stride = padded_depth * 4 + slack;
        words_stride = padded_depth + slack;
        begins = round_up(codes.bytes, 64);
        offsets = begins + total_rows * begins_stride;
        words = offsets + total_rows * offsets_stride;
        bytes = words + total_rows * words_stride;
    }
};

struct ColumnsRow {
    std::int32_t* begins;   // groups + 1
    std::int32_t* offsets;  // bytes from a block's first line
    std::byte* words;

    ColumnsRow(const ColumnsRows& rows, std::byte* prepared, std::int64_t row)
        : begins(reinterpret_cast<std::int32_t*>(prepared + rows.begins + row * rows.begins_stride)),
          offsets(reinterpret_cast<std::int32_t*>(prepared + rows.offsets + row * rows.offsets_stride)),
          words(prepared + rows.words + row * rows.words_stride) {}
};

template <class Isa, int bits>
std::int64_t columns_prepared_bytes(std::int64_t total_rows, const MatrixView& matrix) noexcept {
    const CodesLayout<bits> layout(matrix);
    return ColumnsRows(total_rows, layout.padded_depth, layout.groups).bytes;
}

template <class Isa, int bits>
void columns_prepare(const PrepareArgs& a) noexcept {
    codes_prepare<Isa, bits>(a);
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
                count += Isa::compact(codes + k, k, row.offsets + count, row.words + count);
            for (; count % 4 != 0; ++count) {  // zeros fill the last quad
                row.offsets[count] = row.offsets[count - 1];
                row.words[count] = std::byte{0};
            }
        }
        row.begins[layout.groups] = static_cast<std::int32_t>(count / 4);
    }
}

// Σ code · x of a block's outputs over quads [begin, end) → sums.
template <class Isa, int bits>
void block_sums(const std::byte* block, const ColumnsRow& row, std::int64_t begin, std::int64_t end,
                std::int32_t* sums) {
    using Register = typename Isa::Register;
    constexpr int fields = CodeTraits<bits>::fields;
    constexpr bool in_place = Isa::template in_place<bits>;
    for (std::int64_t part = 0; part < 64; part += Isa::line_part) {
        Register acc[fields][Isa::pieces];
#pragma GCC unroll 4
        for (int f = 0; f < fields; ++f)
#pragma GCC unroll 4
            for (int i = 0; i < Isa::pieces; ++i) acc[f][i] = Isa::zero();
        for (std::int64_t q = begin; q < end; ++q) {
            const std::int32_t* offsets = row.offsets + q * 4;
            if (part == 0) {
                const std::int32_t* later = q + column_quads_ahead < end ? offsets + column_quads_ahead * 4 : offsets;
#pragma GCC unroll 4
                for (int i = 0; i < 4; ++i) _mm_prefetch(reinterpret_cast<const char*>(block + later[i]), _MM_HINT_T0);
            }
            Register codes[Isa::pieces];
            Isa::interleave(block + part, offsets, codes);
            const Register word = Isa::broadcast(row.words + q * 4);
#pragma GCC unroll 4
            for (int f = 0; f < fields; ++f)
#pragma GCC unroll 4
                for (int i = 0; i < Isa::pieces; ++i)
                    acc[f][i] = Isa::Dot::dot(
                        acc[f][i], word,
                        in_place ? Isa::template masked<bits>(codes[i], f) : Isa::template field<bits>(codes[i], f));
        }
#pragma GCC unroll 4
        for (int f = 0; f < fields; ++f)
#pragma GCC unroll 4
            for (int i = 0; i < Isa::pieces; ++i)
                Isa::store_sums(sums + f * 64, part, i, in_place ? Isa::shift_right(acc[f][i], f * bits) : acc[f][i]);
    }
}

// use(panel, column in the block) for the registers of the block's panels that the call wants.
template <class Isa, int bits, class Use>
void for_columns(std::int64_t block, const MultiplyArgs& a, Use use) {
    constexpr std::int64_t block_panels = CodeTraits<bits>::line_codes / panel_columns;
    for (std::int64_t p = 0; p < block_panels; ++p) {
        const std::int64_t panel = block * block_panels + p;
        if (panel < a.first_panel || panel >= a.first_panel + a.panels) continue;
        for (std::int64_t c = 0; c < panel_columns; c += Isa::F32::width) use(panel, p * panel_columns, c);
    }
}

template <class Isa, int bits>
void columns_multiply(const MultiplyArgs& a) noexcept {
    using F32 = typename Isa::F32;
    constexpr std::int64_t line_codes = CodeTraits<bits>::line_codes, block_panels = line_codes / panel_columns;
    const CodesLayout<bits> layout(a.matrix);
    const CodesCall call = codes_call(a, layout);
    const ColumnsRows rows(a.total_rows, layout.padded_depth, layout.groups);
    alignas(64) std::int32_t sums[line_codes];
    const auto load_sums = [&](std::int64_t c) { return Isa::load(reinterpret_cast<const std::byte*>(sums + c)); };
    for (std::int64_t b = a.first_panel / block_panels; b * block_panels < a.first_panel + a.panels; ++b) {
        const std::byte* block = layout.panels + b * layout.panel_bytes;
        for (std::int64_t r = 0; r < a.rows; ++r) {
            const ColumnsRow row(rows, const_cast<std::byte*>(a.prepared), a.row0 + r);
            const F32 row_scale(call.row_scales[r]);
            const auto tile = [&](std::int64_t panel, std::int64_t c) {
                return a.tile + r * a.tile_stride + (panel - a.first_panel) * panel_columns + c;
            };
            if (!layout.group) {
                block_sums<Isa, bits>(block, row, row.begins[0], row.begins[1], sums);
                const auto zero = Isa::set(CodeTraits<bits>::zero * call.row_sums[r]);
                for_columns<Isa, bits>(b, a, [&](std::int64_t panel, std::int64_t column, std::int64_t c) {
                    const F32 scale =
                        F32::load(reinterpret_cast<const float*>(layout.scales) + panel * panel_columns + c);
                    store(tile(panel, c), Isa::to_f32(Isa::sub(load_sums(column + c), zero)) * (row_scale * scale));
                });
                continue;
            }
            for (std::int64_t g = 0; g < layout.groups; ++g) {
                block_sums<Isa, bits>(block, row, row.begins[g], row.begins[g + 1], sums);
                const std::int32_t row_sum = call.row_sums[r * layout.groups + g];
                for_columns<Isa, bits>(b, a, [&](std::int64_t panel, std::int64_t column, std::int64_t c) {
                    const GroupScale<Isa, bits> scale(layout, a.matrix.flags,
                                                      (panel * layout.groups + g) * panel_columns + c);
                    const F32 total =
                        scale.add(g ? F32::load(tile(panel, c)) : F32(0.0f), load_sums(column + c), row_sum);
                    store(tile(panel, c), g + 1 == layout.groups ? total * row_scale : total);
                });
            }
        }
    }
}

}  // namespace
}  // namespace fastffn
