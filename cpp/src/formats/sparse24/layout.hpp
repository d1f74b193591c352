// The sparse24 payload. Of every four consecutive weights of a row, a group, two are kept:
//
//   y[o] = Σ_g  a[o][g] · x[4g + i]  +  b[o][g] · x[4g + j],     0 <= i < j <= 3, from a 4-bit code i | j << 2
//
// Positions that are not kept are skipped: x is never multiplied there, so that NaN or infinity at them reaches no sum. A
// group with fewer than two nonzero weights keeps zeros at fixed positions, and these are multiplied as any kept weight:
//
//   nonzero   none, 2 or 3   0        1        the codes of kept pairs:  01: 4   02: 8   03: C   12: 9   13: D   23: E
//   kept      2,3 (E)        0,3 (C)  1,3 (D)
//
// A panel of 16 columns is cut into blocks of 8 slots; a slot is what one dot product of the kernels eats:
//
//   values     a slot is                   codes      weights of one slot                        bytes, dense
//   bf16       1 group                      64        16 dwords a | b << 16                       9 / 16
//   f16        1 group                      64        16 a, then 16 b                             9 / 16
//   f32        1 group                      64        16 a, then 16 b                            17 / 32
//   int8       2 groups                    128        16 dwords a, b of one, a, b of the next     5 / 8
//
// The codes of all slots come first, one line per block (int8: two), then the weights: a block is read front to back.
// Codes of a slot of one group are 64 bits: column c in dword c % 2, bits c / 2 · 4. Those of two groups are 128 bits: column
// c and group h in word c % 4 · 2 + h, bits c / 4 · 4. In both, one variable shift brings every code to the bottom of its lane.
// Rows pad their groups to whole blocks with the code E and zeros.
//
// int8 has its scales and column sums in front, as int8/layout.hpp says. Kernels are safe with any payload: a code reaches
// no further than the four activations of its group.
#pragma once

#include "core/convert.hpp"
#include "core/kernel.hpp"

namespace fastffn {
namespace {

enum class Sparse24Values : std::uint32_t { bf16 = 0, f16 = 1, f32 = 2, int8 = 3 };  // the header's flags
constexpr std::uint32_t sparse24_values_limit = 4;

constexpr std::int64_t block_slots = 8;
constexpr std::uint32_t empty_code = 0xE;

struct Sparse24Layout {
    std::int64_t groups_per_slot, code_bytes, slot_bytes;

    constexpr explicit Sparse24Layout(Sparse24Values values)
        : groups_per_slot(values == Sparse24Values::int8 ? 2 : 1),
          code_bytes(block_slots * 8 * groups_per_slot),
          slot_bytes(values == Sparse24Values::f32 ? 128 : 64) {}

    constexpr std::int64_t block_bytes() const { return code_bytes + block_slots * slot_bytes; }
    constexpr std::int64_t block_depth() const { return block_slots * groups_per_slot * 4; }
    std::int64_t blocks(std::int64_t in_features) const { return divide_up(in_features, block_depth()); }
    std::int64_t panel_bytes(std::int64_t in_features) const { return blocks(in_features) * block_bytes(); }
};

// Where the code of one group and column lies: a byte, and the bit in it.
struct CodeAt {
    std::int64_t byte;
    int shift;
};

inline CodeAt code_at(const Sparse24Layout& layout, std::int64_t group, std::int64_t column) {
    const std::int64_t slot = group / layout.groups_per_slot, block = slot / block_slots;
    std::int64_t bit;  // within the codes of the slot
    if (layout.groups_per_slot == 1) bit = column % 2 * 32 + column / 2 * 4;
    else bit = (column % 4 * 2 + group % 2) * 16 + column / 4 * 4;
    return {block * layout.block_bytes() + slot % block_slots * 8 * layout.groups_per_slot + bit / 8,
            static_cast<int>(bit % 8)};
}

inline std::uint32_t read_code(const std::byte* panel, CodeAt at) {
    return (static_cast<std::uint32_t>(panel[at.byte]) >> at.shift) & 0xF;
}

// Offset in its panel of the first kept weight of a group and column; the second lies second_offset() further.
inline std::int64_t value_offset(Sparse24Values values, std::int64_t group, std::int64_t column) {
    const Sparse24Layout layout(values);
    const std::int64_t slot = group / layout.groups_per_slot;
    const std::int64_t base =
        slot / block_slots * layout.block_bytes() + layout.code_bytes + slot % block_slots * layout.slot_bytes;
    switch (values) {
        case Sparse24Values::bf16: return base + column * 4;
        case Sparse24Values::f16: return base + column * 2;
        case Sparse24Values::f32: return base + column * 4;
        default: return base + column * 4 + group % 2 * 2;
    }
}
inline std::int64_t second_offset(Sparse24Values values) {
    switch (values) {
        case Sparse24Values::bf16: return 2;
        case Sparse24Values::f16: return 32;
        case Sparse24Values::f32: return 64;
        default: return 1;
    }
}

// The sections of a payload: int8 has two in front of the panels.
struct Sparse24Payload {
    const std::byte *scales, *sums, *panels;
    std::int64_t panel_bytes, blocks;
};

inline Sparse24Payload sparse24_payload(const MatrixView& matrix, Sparse24Values values) {
    const Sparse24Layout layout(values);
    const std::int64_t section = values == Sparse24Values::int8 ? panels_of(matrix) * 64 : 0;
    return {matrix.payload, matrix.payload + section, matrix.payload + 2 * section,
            layout.panel_bytes(matrix.in_features), layout.blocks(matrix.in_features)};
}

}  // namespace
}  // namespace fastffn
