// How sparse24 lies in device memory: pieces, in the very registers that mma.sp takes. No CUDA here.
//
// A tile is 16 rows of a matrix. It is cut into pieces, each one mma.sp deep, that follow one another:
//
//   values       a piece is         kept weights   positions   bytes    beside dense
//   bf16, f16    16 × 32 columns           512          64       576        9 / 16
//   int8         16 × 64 columns           512         128       640        5 / 8
//   f32          16 × 32 columns          1024          64      1088       17 / 32
//
// Kept weights lie as registers of the 32 lanes: 16 bytes of lane 0, 16 of lane 1, … (f32: twice, the first 8 groups of four
// columns before the last). With g = lane / 4, t = lane % 4 the four registers of a lane are
//
//   bf16, f16    the pairs kept of group t of row g, of row g + 8, and of group t + 4 of both
//   int8         the pairs kept of groups 2t and 2t + 1 of row g, of row g + 8, and of groups 2t + 8 and 2t + 9 of both
//   f32          as bf16, a register being a pair of floats
//
// Positions are 4 bits per group, the lower one in the lower bits, in words of eight groups:
//
//   bf16, f32    word 2g:     groups 0 to 3 of row g in bits 0 to 15, of row g + 8 in bits 16 to 31; word 2g + 1: groups 4 to 7
//   int8         word 4g + t: row g + 8 (t % 2), groups 8 (t / 2) to 8 (t / 2) + 7
//
// Groups and rows behind the end keep zeros at 2 and 3 (code E): no position may be left out, as equal ones are undefined.
// int8 has f32 scales [out_features] behind the tiles.
#pragma once

#include <cstdint>

namespace fastffn::cuda {

constexpr int format_sparse24 = 5;                                                                 // fastffn::Format
constexpr std::uint32_t sparse24_bf16 = 0, sparse24_f16 = 1, sparse24_f32 = 2, sparse24_int8 = 3;  // flags
constexpr std::int64_t sparse24_tile_rows = 16;

constexpr int sparse24_piece_columns(std::uint32_t values) { return values == sparse24_int8 ? 64 : 32; }
constexpr int sparse24_positions_offset(std::uint32_t values) { return values == sparse24_f32 ? 1024 : 512; }
constexpr int sparse24_piece_bytes(std::uint32_t values) {
    return sparse24_positions_offset(values) + 2 * sparse24_piece_columns(values);
}
constexpr std::int64_t sparse24_pieces(std::uint32_t values, std::int64_t in_features) {
    return (in_features + sparse24_piece_columns(values) - 1) / sparse24_piece_columns(values);
}
constexpr std::int64_t sparse24_tiles(std::int64_t out_features) {
    return (out_features + sparse24_tile_rows - 1) / sparse24_tile_rows;
}

// Where the first kept weight of a group of four columns is, in bytes from the piece's first; the second follows it.
constexpr int sparse24_value(std::uint32_t values, int row, int group) {
    const int g = row % 8, upper = row / 8;
    if (values == sparse24_int8) return (4 * g + group / 2 % 4) * 16 + (2 * (group / 8) + upper) * 4 + 2 * (group % 2);
    const int lane = 4 * g + group % 4, half = group / 4;
    return values == sparse24_f32 ? half * 512 + lane * 16 + upper * 8 : lane * 16 + (2 * half + upper) * 4;
}

// Where its four bits are: the byte from the piece's first, and the shift.
constexpr int sparse24_position_byte(std::uint32_t values, int row, int group) {
    const int g = row % 8, upper = row / 8;
    const int bits = values == sparse24_int8 ? 32 * (4 * g + 2 * (group / 8) + upper) + 4 * (group % 8)
                                             : 32 * (2 * g + group / 4) + 16 * upper + 4 * (group % 4);
    return sparse24_positions_offset(values) + bits / 8;
}
constexpr int sparse24_position_shift(int group) { return 4 * (group % 2); }

}  // namespace fastffn::cuda
