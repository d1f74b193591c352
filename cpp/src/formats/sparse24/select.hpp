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
//   always working the shuffles out anew, for many rows    3.5 ns per row against 3.2 when spread once per chunk; dense 4.5
//   reading one or two panels front to back for few rows, as the dense formats do    2048×8192 gated from memory, ms:
//   1 row 3.5 to 4.0 against 3.3 in blocks, 2 rows 4.1 to 4.7 against 3.2, 6 rows 5.6 against 3.5 (within 1 MiB of L2 it
//   wins up to 20 %)
#pragma once

#include "formats/common/blocks.hpp"
#include "formats/sparse24/layout.hpp"

namespace fastffn {
namespace {

// A layout's Dot on packed blocks as they are.
template <class Layout>
struct DirectSlots : Layout {
    using typename Layout::Weights;
    static Weights load(const std::byte* panel, std::int64_t k, int part) {
        return Layout::read(panel + k / block_slots * Layout::step_bytes, static_cast<int>(k % block_slots), part);
    }
};

// The Op of blocks.hpp for a layout: a step is a block of 8 slots, and each slot is a word of the row.
template <class Layout>
struct SelectOp : Layout {
    using Native = Layout;
    using Direct = DirectSlots<Layout>;
    // Zen 4, 2048×8192 gated, bf16, ms: 16 rows 7.2 direct and 8.8 expanded, 24 rows 10.5 and 10.8, 32 rows 13.9 and 13.8.
    static constexpr int direct_blocks = 4;
    static constexpr std::int64_t row_words = block_slots;
    static constexpr bool expands = true;
    static constexpr std::int64_t few_rows = 0;

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
