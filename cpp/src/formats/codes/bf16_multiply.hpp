// int4 times bf16 activations (act="bf16"), written once for AVX2, AVX-512 and AVX-512 BF16.
//
// A code minus 8, or a code where zero points or minima follow, is exact in bf16. So sums of a group are those of exact
// weights, and the group's scale multiplies them in f32:
//
//   few rows   panels front to back; a line becomes words of weights in registers
//   many rows  the lines of a group become words in L1, and the blocks of blocks.hpp run over them
//
// An Isa brings F32, Dot, and Codes<plain>, whose word(packed, j) makes the j-th word of a line; line_words, per_panel, chains.
#pragma once

#include "formats/codes/bf16_rows.hpp"
#include "formats/common/blocks.hpp"

namespace fastffn {
namespace {

struct CodesBf16Call {
    MultiplyArgs args;
    const std::byte* a;  // row0's words
    std::int64_t a_stride;
    const float* row_sums;  // of row0; `groups` per row
};

// What a group's sums are multiplied with, for one register of columns.
template <class Isa, bool plain>
struct Bf16Scale {
    using F32 = typename Isa::F32;
    decltype(F32::v) scale, zero;
    bool minima;

    __attribute__((always_inline)) Bf16Scale(const CodesLayout<4>& layout, std::uint32_t flags, std::int64_t entry)
        : scale(Isa::load_f16(layout.scales + entry * 2).v) {
        if constexpr (!plain) {
            minima = (flags & codes_zeros_mask) == codes_minima;
            zero = minima ? Isa::load_f16(layout.zeros + entry * 2).v : Isa::load_u8(layout.zeros + entry).v;
        }
    }
    __attribute__((always_inline)) F32 add(F32 total, F32 sum, float row_sum) const {
        if constexpr (plain) return multiply_add(sum, scale, total);
        if (minima) return multiply_add(F32(row_sum), zero, multiply_add(sum, scale, total));
        return multiply_add(negative_multiply_add(F32(row_sum), zero, sum), scale, total);
    }
};

// ---- few rows ----

template <class Isa, bool plain, int rows>
void bf16_few_panels(const CodesBf16Call& call, const CodesLayout<4>& layout) {
    using F32 = typename Isa::F32;
    using Dot = typename Isa::Dot;
    constexpr int parts = Isa::per_panel, words = Isa::line_words, chains = Isa::chains(rows);
    const typename Isa::template Codes<plain> codes;
    const bool fetches = fetches_weights();
    const std::int64_t lines = layout.group / 8;
    for (std::int64_t p = 0; p < call.args.panels; ++p) {
        const std::int64_t panel = call.args.first_panel + p;
        const std::byte* b = layout.panels + panel * layout.panel_bytes;
        decltype(F32::v) totals[rows][parts] = {};
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            typename Dot::Acc acc[rows][parts][chains];
#pragma GCC unroll 6
            for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
                for (int q = 0; q < parts; ++q)
#pragma GCC unroll 8
                    for (int c = 0; c < chains; ++c) acc[r][q][c] = Dot::zero();
            for (std::int64_t line = 0; line < lines; line += 2) {
                if (fetches) {
                    fetch_ahead(b + line * 64);
                    fetch_ahead(b + line * 64 + 64);
                }
#pragma GCC unroll 2
                for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
                    for (int q = 0; q < parts; ++q) {
                        auto packed = Dot::load_weights(b + (line + i) * 64 + q * Dot::register_bytes);
                        __asm__("" : "+v"(packed));  // loaded once, as in multiply.hpp
                        packed = codes.begin(packed);
                        const std::byte* a = call.a + (g * lines + line + i) * words * 4;
#pragma GCC unroll 8
                        for (int j = 0; j < words; ++j) {
                            const auto word = codes.word(packed, j);
#pragma GCC unroll 6
                            for (int r = 0; r < rows; ++r) {
                                auto& chain = acc[r][q][(i * words + j) % chains];
                                chain = Dot::dot(chain, Dot::broadcast(a + r * call.a_stride + j * 4), word);
                            }
                        }
                    }
            }
            b += lines * 64;
#pragma GCC unroll 2
            for (int q = 0; q < parts; ++q) {
                const Bf16Scale<Isa, plain> scale(layout, call.args.matrix.flags,
                                                  (panel * layout.groups + g) * panel_columns + q * F32::width);
#pragma GCC unroll 6
                for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
                    for (int half = chains / 2; half >= 1; half /= 2)
#pragma GCC unroll 4
                        for (int c = 0; c < half; ++c) acc[r][q][c] = Dot::sum(acc[r][q][c], acc[r][q][c + half]);
                    totals[r][q] =
                        scale.add(totals[r][q], acc[r][q][0], plain ? 0.0f : call.row_sums[r * layout.groups + g]).v;
                }
            }
        }
        for (int q = 0; q < parts; ++q)
            for (int r = 0; r < rows; ++r)
                store(call.args.tile + r * call.args.tile_stride + p * panel_columns + q * F32::width,
                      F32(totals[r][q]));
    }
}

template <class Isa, bool plain>
void bf16_multiply_few(const CodesBf16Call& call, const CodesLayout<4>& layout) {
    switch (call.args.rows) {
        case 1: return bf16_few_panels<Isa, plain, 1>(call, layout);
        case 2: return bf16_few_panels<Isa, plain, 2>(call, layout);
        case 3: return bf16_few_panels<Isa, plain, 3>(call, layout);
        case 4: return bf16_few_panels<Isa, plain, 4>(call, layout);
        case 5: return bf16_few_panels<Isa, plain, 5>(call, layout);
        default: return bf16_few_panels<Isa, plain, 6>(call, layout);
    }
}

// ---- many rows ----

template <class Isa, bool plain>
void bf16_multiply_many(const CodesBf16Call& call, const CodesLayout<4>& layout) {
    using F32 = typename Isa::F32;
    using Dot = typename Isa::Dot;
    constexpr int words = Isa::line_words, parts = Isa::per_panel;
    constexpr std::int64_t block_panels = Dot::block_registers / parts, largest_group = 256;
    constexpr std::int64_t block_columns = block_panels * panel_columns;
    alignas(64) std::byte expanded[block_panels * largest_group / 8 * words * 64];
    alignas(64) float sums[block_rows * block_columns];
    const typename Isa::template Codes<plain> codes;
    const MultiplyArgs& args = call.args;
    const std::int64_t lines = layout.group / 8, b_panel = lines * words * 64;
    const std::int64_t row_blocks = divide_up(args.rows, block_rows);
    const std::int64_t base_rows = args.rows / row_blocks, longer_blocks = args.rows % row_blocks;
    for (std::int64_t p = 0; p < args.panels; p += block_panels) {
        const std::int64_t panels = args.panels - p < block_panels ? args.panels - p : block_panels;
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            const std::byte* packed = layout.panels + (args.first_panel + p) * layout.panel_bytes + g * lines * 64;
            for (std::int64_t i = 0; i < panels; ++i)
                for (std::int64_t line = 0; line < lines; ++line)
#pragma GCC unroll 2
                    for (int q = 0; q < parts; ++q) {
                        auto of_line =
                            Dot::load_weights(packed + i * layout.panel_bytes + line * 64 + q * Dot::register_bytes);
                        of_line = codes.begin(of_line);
                        std::byte* dst = expanded + i * b_panel + line * words * 64 + q * Dot::register_bytes;
#pragma GCC unroll 8
                        for (int j = 0; j < words; ++j) Isa::store(dst + j * 64, codes.word(of_line, j));
                    }
            const bool last = g + 1 == layout.groups;
            const std::byte* next =
                last ? packed + block_panels * layout.panel_bytes - g * lines * 64 : packed + lines * 64;
            std::int64_t row = 0;
            for (std::int64_t i = 0; i < row_blocks; ++i) {
                const std::int64_t rows = base_rows + (i < longer_blocks);
                block_of<Dot>(rows, panels)(
                    call.a + row * call.a_stride + g * lines * words * 4, call.a_stride, expanded, b_panel,
                    lines * words, sums, block_columns, false,
                    Ahead{next + i * lines / row_blocks * 64, layout.panel_bytes, row_blocks * words});
                for (std::int64_t c = 0; c < panels * panel_columns; c += F32::width) {
                    const Bf16Scale<Isa, plain> scale(
                        layout, args.matrix.flags,
                        ((args.first_panel + p + c / panel_columns) * layout.groups + g) * panel_columns +
                            c % panel_columns);
                    float* tile = args.tile + row * args.tile_stride + p * panel_columns + c;
                    for (std::int64_t r = 0; r < rows; ++r, tile += args.tile_stride) {
                        const float row_sum = plain ? 0.0f : call.row_sums[(row + r) * layout.groups + g];
                        store(tile, scale.add(g ? F32::load(tile) : F32(0.0f), F32::load(sums + r * block_columns + c),
                                              row_sum));
                    }
                }
                row += rows;
            }
        }
    }
}

template <class Isa>
void codes_bf16_multiply(const MultiplyArgs& a) noexcept {
    const CodesLayout<4> layout(a.matrix);
    const CodesBf16Rows rows(a.total_rows, codes_bf16_words(layout, Isa::line_words), layout.groups);
    const CodesBf16Call call{a, a.prepared + a.row0 * rows.stride, rows.stride,
                             reinterpret_cast<const float*>(a.prepared + rows.sums) + a.row0 * layout.groups};
    const bool plain = (a.matrix.flags & codes_zeros_mask) == codes_no_zeros;
    if (a.total_rows <= few_rows_limit)
        return plain ? bf16_multiply_few<Isa, true>(call, layout) : bf16_multiply_few<Isa, false>(call, layout);
    if (plain) bf16_multiply_many<Isa, true>(call, layout);
    else bf16_multiply_many<Isa, false>(call, layout);
}

}  // namespace
}  // namespace fastffn
