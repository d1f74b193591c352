// Products with 2- and 4-bit codes, written once for AVX2 and AVX-512 VNNI.
//
//   few rows   panels front to back, one mask (and shift) per field and line; each packed byte is read once
//   many rows  a chunk of lines becomes one byte per code in L1, and the blocks of rows run over that
//   groups     an int32 sum per group, which is scaled and added to an f32 sum; few and many rows alike
//
// An Isa brings: F32 and integer registers (Register, zero, load, broadcast, dot: u8 codes × s8 words, add, sub), field<bits>,
// conversions and the loads of scales and zeros for one register of columns.
#pragma once

#include "formats/codes/layout.hpp"
#include "formats/common/blocks.hpp"

namespace fastffn {
namespace {

// Code sums → f32 results of one group for one register of columns. `plain`: for neither zero points nor minima; the
// sum then begins at start(), where a broadcast is as quick as a zero.
template <class Isa, int bits, bool plain>
struct GroupScale {
    using F32 = typename Isa::F32;
    using Register = typename Isa::Register;
    decltype(F32::v) scale, minimum;
    Register zero;
    bool minima;

    __attribute__((always_inline)) GroupScale(const CodesLayout<bits>& layout, std::uint32_t flags, std::int64_t entry)
        : scale(Isa::load_f16(layout.scales + entry * 2).v) {
        if constexpr (!plain) {
            minima = (flags & codes_zeros_mask) == codes_minima;
            const bool zeros = (flags & codes_zeros_mask) == codes_zero_points;
            zero = zeros ? Isa::load_u8(layout.zeros + entry) : Isa::set(minima ? 0 : CodeTraits<bits>::zero);
            minimum = minima ? Isa::load_f16(layout.zeros + entry * 2).v : F32(0.0f).v;
        }
    }
    // row_sum: Σ x over the group.
    static Register start(std::int32_t row_sum) {
        return plain ? Isa::set(-CodeTraits<bits>::zero * row_sum) : Isa::zero();
    }
    // sum: start() + Σ code · x over the group.
    __attribute__((always_inline)) F32 add(F32 total, Register sum, std::int32_t row_sum) const {
        if constexpr (plain) return multiply_add(Isa::to_f32(sum), scale, total);
        const auto row = Isa::set(row_sum);
        total = multiply_add(Isa::to_f32(Isa::sub(sum, Isa::multiply(zero, row))), scale, total);
        return minima ? multiply_add(Isa::to_f32(row), minimum, total) : total;
    }
};

template <int count>
struct Count {
    static constexpr int value = count;
};

struct CodesCall {
    MultiplyArgs args;
    std::uint32_t flags;
    const std::byte* a;  // row0's codes
    std::int64_t a_stride;
    const float* row_scales;       // of row0
    const std::int32_t* row_sums;  // of row0; `groups` per row
};

template <int bits>
CodesCall codes_call(const MultiplyArgs& a, const CodesLayout<bits>& layout) {
    const CodesRows rows(a.total_rows, layout.padded_depth, layout.groups);
    return {a,
            a.matrix.flags,
            a.prepared + a.row0 * rows.stride,
            rows.stride,
            reinterpret_cast<const float*>(a.prepared + rows.scales) + a.row0,
            reinterpret_cast<const std::int32_t*>(a.prepared + rows.sums) + a.row0 * layout.groups};
}

// ---- few rows ----

// Σ code · x of `lines` lines for `rows` rows of one panel. Up to two rows leave each field in place, in a sum of its own that
// is shifted at the end: exact, as every term is a multiple of the field's unit, and one instruction per field instead of
// two. More rows share the shift. One panel at a time: two that share the words of the row read hot weights as fast and those
// in memory at 18 GB/s instead of 31 (Zen 4, one core, 4096×4096).
template <class Isa, int bits, int rows>
__attribute__((always_inline)) inline void few_lines(const std::byte* a, std::int64_t a_stride, const std::byte* b,
                                                     std::int64_t lines, bool fetches,
                                                     typename Isa::Register (&sums)[rows][Isa::per_panel]) {
    using Traits = CodeTraits<bits>;
    constexpr int fields = Traits::fields, parts = Isa::per_panel;
    constexpr bool in_place = rows <= 2 && Isa::template in_place<bits>;
    // Lines come in pairs, each with sums of its own: a sum per field alone waits for its last product (46 GB/s of hot
    // ternary weights, in pairs 53; the products themselves take 59).
    constexpr int chains = in_place ? 2 * fields : rows <= 2 ? 2 : 1;
    typename Isa::Register acc[rows][parts][chains];
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int p = 0; p < parts; ++p)
#pragma GCC unroll 8
            for (int c = 0; c < chains; ++c) acc[r][p][c] = Isa::zero();
    for (std::int64_t pair = 0; pair < lines; pair += 2) {
        if (fetches) {
            fetch_ahead(b + pair * 64);
            fetch_ahead(b + pair * 64 + 64);
        }
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i)
#pragma GCC unroll 2
            for (int p = 0; p < parts; ++p) {
                const std::int64_t line = pair + i;
                typename Isa::Register packed = Isa::load(b + line * 64 + p * Isa::register_bytes);
                // Else gcc 12 loads it again for every mask: 68 GB/s of hot int4 weights instead of 85.
                __asm__("" : "+v"(packed));
#pragma GCC unroll 4
                for (int f = 0; f < fields; ++f) {
                    const typename Isa::Register codes =
                        in_place ? Isa::template masked<bits>(packed, f) : Isa::template field<bits>(packed, f);
#pragma GCC unroll 6
                    for (int r = 0; r < rows; ++r) {
                        auto& chain = acc[r][p][(i * fields + f) % chains];
                        chain = Isa::dot_word(chain, codes, a + r * a_stride + (line * fields + f) * 4);
                    }
                }
            }
    }
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
        for (int p = 0; p < parts; ++p) {
            constexpr int sets = chains > fields ? fields : chains;
            typename Isa::Register sum = Isa::zero();
#pragma GCC unroll 4
            for (int c = 0; c < sets; ++c) {
                const auto both = chains > fields ? Isa::add(acc[r][p][c], acc[r][p][c + chains - sets]) : acc[r][p][c];
                sum = Isa::add(sum, in_place ? Isa::shift_right(both, c * bits) : both);
            }
            sums[r][p] = sum;
        }
}

template <class Isa, int bits, int rows, bool plain>
void few_panels_of(const CodesCall& call, const CodesLayout<bits>& layout) {
    using Traits = CodeTraits<bits>;
    using F32 = typename Isa::F32;
    using Scale = GroupScale<Isa, bits, plain>;
    constexpr int parts = Isa::per_panel;
    const bool fetches = fetches_weights();
    for (std::int64_t p = 0; p < call.args.panels; ++p) {
        const std::int64_t panel = call.args.first_panel + p;
        const std::byte* b = layout.panels + panel * layout.panel_bytes;
        typename Isa::Register sums[rows][parts];
        float* tile = call.args.tile + p * panel_columns;
        if (!layout.group) {
            few_lines<Isa, bits, rows>(call.a, call.a_stride, b, layout.panel_bytes / 64, fetches, sums);
            for (int q = 0; q < parts; ++q) {
                const F32 scale =
                    F32::load(reinterpret_cast<const float*>(layout.scales) + panel * 16 + q * F32::width);
                for (int r = 0; r < rows; ++r) {
                    const auto exact = Isa::sub(sums[r][q], Isa::set(Traits::zero * call.row_sums[r]));
                    store(tile + r * call.args.tile_stride + q * F32::width,
                          Isa::to_f32(exact) * (F32(call.row_scales[r]) * scale));
                }
            }
            continue;
        }
        decltype(F32::v) totals[rows][parts] = {};
        const std::int64_t lines = layout.group / Traits::depths_per_line;
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            few_lines<Isa, bits, rows>(call.a + g * layout.group, call.a_stride, b + g * lines * 64, lines, fetches,
                                       sums);
#pragma GCC unroll 2
            for (int q = 0; q < parts; ++q) {
                const Scale scale(layout, call.flags, (panel * layout.groups + g) * panel_columns + q * F32::width);
#pragma GCC unroll 6
                for (int r = 0; r < rows; ++r) {
                    const std::int32_t row_sum = call.row_sums[r * layout.groups + g];
                    totals[r][q] = scale.add(totals[r][q], Isa::add(sums[r][q], Scale::start(row_sum)), row_sum).v;
                }
            }
        }
        for (int q = 0; q < parts; ++q)
            for (int r = 0; r < rows; ++r)
                store(tile + r * call.args.tile_stride + q * F32::width, F32(totals[r][q]) * F32(call.row_scales[r]));
    }
}

template <class Isa, int bits, bool plain>
void multiply_few_codes(const CodesCall& call, const CodesLayout<bits>& layout) {
    switch (call.args.rows) {
        case 1: return few_panels_of<Isa, bits, 1, plain>(call, layout);
        case 2: return few_panels_of<Isa, bits, 2, plain>(call, layout);
        case 3: return few_panels_of<Isa, bits, 3, plain>(call, layout);
        case 4: return few_panels_of<Isa, bits, 4, plain>(call, layout);
        case 5: return few_panels_of<Isa, bits, 5, plain>(call, layout);
        default: return few_panels_of<Isa, bits, 6, plain>(call, layout);
    }
}

// ---- many rows, one scale per column ----

template <class Isa, int bits>
struct CodesOp : Isa::Dot {
    using Native = typename Isa::Dot;
    static constexpr std::int64_t row_words = CodeTraits<bits>::fields, step_bytes = 64;
    static constexpr bool expands = true;
    static void expand(const std::byte* lines, std::int64_t count, std::byte* expanded) {
        for (std::int64_t line = 0; line < count; ++line)
#pragma GCC unroll 2
            for (int p = 0; p < Isa::per_panel; ++p) {
                const auto packed = Isa::load(lines + line * 64 + p * Isa::register_bytes);
#pragma GCC unroll 4
                for (int f = 0; f < CodeTraits<bits>::fields; ++f)
                    Isa::store(expanded + (line * CodeTraits<bits>::fields + f) * 64 + p * Isa::register_bytes,
                               Isa::template field<bits>(packed, f));
            }
    }
};

template <class Isa, int bits>
void multiply_many_codes(const CodesCall& call, const CodesLayout<bits>& layout) {
    using F32 = typename Isa::F32;
    const MultiplyArgs& a = call.args;
    auto finish = [&](std::int64_t row, std::int64_t rows, std::int64_t panel, std::int64_t panels) {
        for (std::int64_t c = panel * 16; c < (panel + panels) * 16; c += F32::width) {
            const F32 scale = F32::load(reinterpret_cast<const float*>(layout.scales) + a.first_panel * 16 + c);
            for (std::int64_t r = row; r < row + rows; ++r) {
                float* tile = a.tile + r * a.tile_stride + c;
                const auto exact =
                    Isa::sub(Isa::Dot::load_acc(tile), Isa::set(CodeTraits<bits>::zero * call.row_sums[r]));
                store(tile, Isa::to_f32(exact) * (F32(call.row_scales[r]) * scale));
            }
        }
    };
    multiply_many<CodesOp<Isa, bits>>(
        {call.a, call.a_stride, layout.panels + a.first_panel * layout.panel_bytes, layout.panel_bytes,
         layout.panel_bytes / 64, a.rows, a.panels, a.tile, a.tile_stride},
        finish);
}

// ---- many rows, groups ----

// rows × registers of one group: codes at 64 bytes per word and panel, sums scaled into the f32 tile.
template <class Isa, int bits, bool plain, int rows, int registers>
void group_block(const CodesCall& call, const CodesLayout<bits>& layout, std::int64_t row, std::int64_t first_panel,
                 std::int64_t g, const std::byte* b, std::int64_t b_panel, float* tile) {
    using F32 = typename Isa::F32;
    using Scale = GroupScale<Isa, bits, plain>;
    constexpr int parts = Isa::per_panel;
    const std::byte* a = call.a + row * call.a_stride + g * layout.group;
    typename Isa::Register acc[rows][registers];
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < registers; ++i) acc[r][i] = Scale::start(call.row_sums[(row + r) * layout.groups + g]);
    for (std::int64_t k = 0; k < layout.group / 4; ++k) {
        typename Isa::Register codes[registers];
#pragma GCC unroll 4
        for (int i = 0; i < registers; ++i)
            codes[i] = Isa::load(b + i / parts * b_panel + k * 64 + i % parts * Isa::register_bytes);
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
            const typename Isa::Register word = Isa::broadcast(a + r * call.a_stride + k * 4);
#pragma GCC unroll 4
            for (int i = 0; i < registers; ++i) acc[r][i] = Isa::Dot::dot(acc[r][i], word, codes[i]);
        }
    }
    const bool last = g + 1 == layout.groups;
#pragma GCC unroll 4
    for (int i = 0; i < registers; ++i) {
        const Scale scale(layout, call.flags,
                          ((first_panel + i / parts) * layout.groups + g) * panel_columns + i % parts * F32::width);
#pragma GCC unroll 6
        for (int r = 0; r < rows; ++r) {
            float* sums = tile + r * call.args.tile_stride + i * F32::width;
            F32 total = g ? F32::load(sums) : F32(0.0f);
            total = scale.add(total, acc[r][i], call.row_sums[(row + r) * layout.groups + g]);
            store(sums, last ? total * F32(call.row_scales[row + r]) : total);
        }
    }
}

template <class Isa, int bits, bool plain, int registers>
void group_rows(std::int64_t rows, const CodesCall& call, const CodesLayout<bits>& layout, std::int64_t row,
                std::int64_t first_panel, std::int64_t g, const std::byte* b, std::int64_t b_panel, float* tile) {
    switch (rows) {
        case 1: return group_block<Isa, bits, plain, 1, registers>(call, layout, row, first_panel, g, b, b_panel, tile);
        case 2: return group_block<Isa, bits, plain, 2, registers>(call, layout, row, first_panel, g, b, b_panel, tile);
        case 3: return group_block<Isa, bits, plain, 3, registers>(call, layout, row, first_panel, g, b, b_panel, tile);
        case 4: return group_block<Isa, bits, plain, 4, registers>(call, layout, row, first_panel, g, b, b_panel, tile);
        case 5: return group_block<Isa, bits, plain, 5, registers>(call, layout, row, first_panel, g, b, b_panel, tile);
        default:
            return group_block<Isa, bits, plain, 6, registers>(call, layout, row, first_panel, g, b, b_panel, tile);
    }
}

template <class Isa, int bits, bool plain>
void multiply_many_groups(const CodesCall& call, const CodesLayout<bits>& layout) {
    constexpr int parts = Isa::per_panel;
    constexpr std::int64_t block_panels = Isa::Dot::block_registers / parts, largest_group = 256;
    alignas(64) std::byte expanded[block_panels * largest_group / 4 * 64];
    const MultiplyArgs& a = call.args;
    const std::int64_t lines = layout.group / CodeTraits<bits>::depths_per_line, b_panel = layout.group / 4 * 64;
    const std::int64_t row_blocks = divide_up(a.rows, block_rows);
    const std::int64_t base_rows = a.rows / row_blocks, longer_blocks = a.rows % row_blocks;
    for (std::int64_t p = 0; p < a.panels; p += block_panels) {
        const std::int64_t panels = a.panels - p < block_panels ? a.panels - p : block_panels;
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            for (std::int64_t i = 0; i < panels; ++i) {
                const std::byte* packed = layout.panels + (a.first_panel + p + i) * layout.panel_bytes + g * lines * 64;
                CodesOp<Isa, bits>::expand(packed, lines, expanded + i * b_panel);
                for (std::int64_t line = 0; line < lines; ++line)  // the next group's, while this one is multiplied
                    _mm_prefetch(reinterpret_cast<const char*>(packed + (lines + line) * 64), _MM_HINT_T1);
            }
            std::int64_t row = 0;
            for (std::int64_t block = 0; block < row_blocks; ++block) {
                const std::int64_t rows = base_rows + (block < longer_blocks);
                float* tile = a.tile + row * a.tile_stride + p * 16;
                auto run = [&](auto count) {
                    group_rows<Isa, bits, plain, decltype(count)::value * parts>(
                        rows, call, layout, row, a.first_panel + p, g, expanded, b_panel, tile);
                };
                if constexpr (block_panels == 1) run(Count<1>{});
                else switch (panels) {
                        case 1: run(Count<1>{}); break;
                        case 2: run(Count<2>{}); break;
                        case 3: run(Count<3>{}); break;
                        default: run(Count<4>{}); break;
                    }
                row += rows;
            }
        }
    }
}

template <class Isa, int bits, bool plain>
void multiply_groups(const CodesCall& call, const CodesLayout<bits>& layout) {
    if (call.args.total_rows <= few_rows_limit) multiply_few_codes<Isa, bits, plain>(call, layout);
    else multiply_many_groups<Isa, bits, plain>(call, layout);
}

template <class Isa, int bits>
void codes_multiply(const MultiplyArgs& a) noexcept {
    const CodesLayout<bits> layout(a.matrix);
    const CodesCall call = codes_call(a, layout);
    const bool plain = (call.flags & codes_zeros_mask) == codes_no_zeros;
    if (layout.group && plain) multiply_groups<Isa, bits, true>(call, layout);
    else if (layout.group) multiply_groups<Isa, bits, false>(call, layout);
    else if (a.total_rows <= few_rows_limit) multiply_few_codes<Isa, bits, true>(call, layout);
    else multiply_many_codes<Isa, bits>(call, layout);
}

}  // namespace
}  // namespace fastffn
