// The inner loop of every sparse24 kernel: instead of expanding the weights, it chooses the activations that they meet. The
// four activations of a group are broadcast, and one in-lane shuffle per row, steered by the codes, puts before each of the
// 16 columns the two that this column keeps. One dot product then does the work of two dense ones, on 9/16 of the bytes.
//
// A layout's Op, a Dot of blocks.hpp on top of it, says what a slot is:
//   Weights              what a slot's codes and weights become in registers: a shuffle, and operands of the dot
//   read(block, slot, part)     Weights of one slot and register of columns from a packed block
//   spread(weights, expanded, part)   Weights to memory as load() reads them; done once per chunk where many rows share it
//   dot(acc, word, weights)     word_bytes of a row, broadcast, against them
//
// What lost (Zen 4, one core, bf16, ns per 32 × 16 weights; dense / this / other):
//   choosing by two masks and blends instead of a shuffle    1 row in L2 9.1 / 6.1 / 9.4, 4 rows 17.9 / 16.4 / 16.8, 6 rows
//   26.1 / 22.1 / 31.7: a mask costs a load and a move to a mask register per group, a shuffle two vector operations
//   expanding to dense pairs in registers    1 row 12.1, 4 rows 21.9, 6 rows 30.8: twice the dots
//   shuffles from codes on the fly for many rows    3.5 ns per row against 3.2 when spread once per chunk; dense 4.5
#pragma once

#include "formats/common/blocks.hpp"
#include "formats/sparse24/layout.hpp"

namespace fastffn {
namespace {

// One or two panels, their whole depth, for a few rows; run_panels() for packed bytes that come in blocks.
template <class Op, int rows, int panels>
void run_select(const std::byte* a, std::int64_t a_stride, const std::byte* b, std::int64_t b_panel,
                std::int64_t blocks, float* tile, std::int64_t tile_stride) {
    // Zen 4, one row from memory: 1.1 KiB ahead 35.7 ns per 32 × 16 weights, 2.3 KiB 25.5, 4.5 KiB 27.4, 9 KiB 24.0.
    constexpr std::int64_t prefetch_bytes = 2304;
    constexpr int per_panel = 64 / Op::register_bytes, registers = panels * per_panel;
    constexpr int unroll = Op::few_unroll(rows);
    typename Op::Acc acc[rows][registers][unroll];
#pragma GCC unroll 6
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < registers; ++i)
#pragma GCC unroll 4
            for (int u = 0; u < unroll; ++u) acc[r][i][u] = Op::zero();
    for (std::int64_t block = 0; block < blocks; ++block) {
#pragma GCC unroll 2
        for (int p = 0; p < panels; ++p)
#pragma GCC unroll 17
            for (std::int64_t line = 0; line < Op::step_bytes; line += 64)
                _mm_prefetch(reinterpret_cast<const char*>(b + p * b_panel + line + prefetch_bytes), _MM_HINT_T0);
#pragma GCC unroll 8
        for (int slot = 0; slot < block_slots; ++slot)
#pragma GCC unroll 4
            for (int i = 0; i < registers; ++i) {
                const typename Op::Weights weights = Op::read(b + i / per_panel * b_panel, slot, i % per_panel);
#pragma GCC unroll 6
                for (int r = 0; r < rows; ++r)
                    acc[r][i][slot % unroll] = Op::dot(
                        acc[r][i][slot % unroll], Op::broadcast(a + r * a_stride + slot * Op::word_bytes), weights);
            }
        a += block_slots * Op::word_bytes;
        b += Op::step_bytes;
    }
    store_sums<Op>(acc, tile, tile_stride);
}

// The Op of blocks.hpp for a layout: a step is a block of 8 slots, and each slot is a word of the row.
template <class Layout>
struct SelectOp : Layout {
    using Native = Layout;
    static constexpr std::int64_t row_words = block_slots;
    static constexpr bool expands = true, runs_itself = true;
    // Two panels share broadcasts, one panel is one stream. Zen 4, in L2 and from memory, ns per 32 × 16 weights: 1 row 6.1
    // and 25.4 (two panels 5.9 and 30.1), 2 rows 9.8 and 28.1 (9.4 and 32.7), 4 rows 18.0 and 36.3 (16.6 and 35.4).
    static constexpr int two_panels_from = 4;

    template <int rows, int panels>
    static void run(const std::byte* a, std::int64_t a_stride, const std::byte* b, std::int64_t b_panel,
                    std::int64_t blocks, float* tile, std::int64_t tile_stride) {
        run_select<SelectOp, rows, panels>(a, a_stride, b, b_panel, blocks, tile, tile_stride);
    }
    static void expand(const std::byte* weights, std::int64_t blocks, std::byte* expanded) {
        constexpr int per_panel = 64 / Layout::register_bytes;
        for (std::int64_t block = 0; block < blocks; ++block) {
#pragma GCC unroll 8
            for (int slot = 0; slot < block_slots; ++slot)
#pragma GCC unroll 2
                for (int part = 0; part < per_panel; ++part)
                    Layout::spread(Layout::read(weights, slot, part), expanded + slot * Layout::weight_bytes, part);
            weights += Layout::step_bytes;
            expanded += block_slots * Layout::weight_bytes;
        }
    }
};

}  // namespace
}  // namespace fastffn
