// What a matrix packed for devices holds (header layout 2), behind its 64-byte header: plain offsets, for the host that writes
// it and the launchers that read it. No CUDA here.
//
//   f32, f16, bf16   rows [out_features], each padded with zeros to 16 bytes
//   int8             rows of s8, each padded with zeros to 16; then f32 scales [out_features]
//   sparse24         tiles of 16 rows as layout/sparse24.hpp says; then of int8 values f32 scales [out_features]
//   ternary, int4    rows of codes in chunks of 64 bytes (below); then scales, f32 [out_features] without groups, f16
//                    [groups, out_features] with; then zeros: u8 points or f16 minima [groups, out_features], or none. In tables
//                    of groups out_features is rounded up to 16
//
// Each part begins at a multiple of 64 bytes. A chunk holds 256 columns of 2 bits or 128 of 4, in the order in which the four
// lanes that share a row load 16 bytes each: column k of a chunk, k = 32 s + 8 t + 4 q + b, is in byte 16 t + 4 word + b:
//
//   4 bits   word s,      bits 4 q and up
//   2 bits   word s / 2,  bits 4 (s % 2) + 2 q and up
//
// so that a shift and a mask make four codes of neighbouring columns, and eight neighbours are a lane's share of one mma.
// With act='bf16' two neighbours are 16 bits apart instead: column 32 s + 8 t + 2 i + j is in bits 4 i + 16 j and up of word s, so
// that a shift and a mask make a pair of numbers of 16 bits.
#pragma once

#include <cstdint>

#include "layout/sparse24.hpp"

namespace fastffn::cuda {

// fastffn::Format and the flags of codes (formats/codes/layout.hpp), as the ABI has them.
constexpr int format_f32 = 1, format_f16 = 2, format_bf16 = 3, format_int8 = 4, format_ternary = 7, format_int4 = 8;
constexpr std::uint32_t layout_zeros_mask = 3, layout_zero_points = 1, layout_minima = 2;
constexpr std::uint32_t layout_act_shift = 2, layout_act_mask = 3u << layout_act_shift;
constexpr std::uint32_t layout_act_int8 = 0, layout_act_int4 = 1, layout_act_bf16 = 2;
constexpr std::uint32_t layout_scale_mask = 3u << 4;  // how pack() made the scales
constexpr std::uint32_t layout_hadamard_shift = 6, layout_hadamard_mask = 3u << layout_hadamard_shift;
constexpr std::uint32_t layout_rotated = 1u << 8;
constexpr std::uint32_t layout_order_mask = 3u << 9;  // of the CPU's bytes; devices have one order

constexpr std::int64_t codes_chunk_columns(int bits) { return 512 / bits; }
constexpr std::int64_t codes_padded_depth(int bits, std::int64_t depth) {
    return (depth + codes_chunk_columns(bits) - 1) / codes_chunk_columns(bits) * codes_chunk_columns(bits);
}
// Where the code of column k of a row is: the byte from the row's first, and the shift.
constexpr std::int64_t codes_byte(int bits, std::int64_t k, bool is_bf16 = false) {
    const std::int64_t in_chunk = k % codes_chunk_columns(bits), span = in_chunk / 32;
    return k / codes_chunk_columns(bits) * 64 + in_chunk % 32 / 8 * 16 + (bits == 4 ? span : span / 2) * 4 +
           (is_bf16 ? k % 2 * 2 + k % 8 / 4 : k % 4);
}
constexpr int codes_shift(int bits, std::int64_t k, bool is_bf16 = false) {
    const int quad = static_cast<int>(k % 8 / 4), odd_span = static_cast<int>(k / 32 % 2);
    return is_bf16 ? static_cast<int>(k % 4 / 2) * 4 : bits == 4 ? 4 * quad : 4 * odd_span + 2 * quad;
}

// Rows in tables of scales and zeros per group, and the place of an entry.
constexpr std::int64_t codes_table_rows(std::int64_t out_features) { return (out_features + 15) / 16 * 16; }
constexpr std::int64_t codes_entry(std::int64_t out_features, std::int64_t row, std::int64_t group) {
    return group * codes_table_rows(out_features) + row;
}

struct DeviceLayout {
    std::int64_t row_bytes = 0, scales_offset = 0, zeros_offset = 0;
    std::int64_t bytes = 0;       // of one matrix, a multiple of 64; 0: not for devices
    int bits = 0;                 // of codes
    bool is_bf16 = false;         // codes that meet bf16 activations
    std::int64_t tile_bytes = 0;  // of sparse24
    std::int64_t padded_depth = 0, group = 0, groups = 1;
    const char* reason = "";  // why not
};

constexpr std::int64_t whole_lines(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

constexpr DeviceLayout device_layout(int format, std::uint32_t flags, std::uint32_t group, std::int64_t out_features,
                                     std::int64_t in_features) {
    DeviceLayout layout;
    if (format == format_f32 || format == format_f16 || format == format_bf16 || format == format_int8) {
        const int element = format == format_f32 ? 4 : format == format_int8 ? 1 : 2;
        layout.row_bytes = (in_features * element + 15) / 16 * 16;
        layout.scales_offset = whole_lines(out_features * layout.row_bytes);
        layout.bytes = layout.scales_offset + (format == format_int8 ? whole_lines(out_features * 4) : 0);
        return layout;
    }
    if (format == format_sparse24) {
        if (flags > sparse24_int8) {
            layout.reason = "sparse24 values of a kind that this version does not know";
            return layout;
        }
        layout.padded_depth = sparse24_pieces(flags, in_features) * sparse24_piece_columns(flags);
        layout.tile_bytes = sparse24_pieces(flags, in_features) * sparse24_piece_bytes(flags);
        layout.scales_offset = sparse24_tiles(out_features) * layout.tile_bytes;
        layout.bytes = layout.scales_offset + (flags == sparse24_int8 ? whole_lines(out_features * 4) : 0);
        return layout;
    }
    if (format != format_ternary && format != format_int4) {
        layout.reason = "this format has no layout for CUDA devices yet";
        return layout;
    }
    if (format == format_ternary && (flags & (layout_zeros_mask | 2u << layout_act_shift))) {
        layout.reason = "ternary codes with options that this version does not know";
        return layout;
    }
    if (flags & ~(layout_zeros_mask | layout_act_mask | layout_scale_mask | layout_hadamard_mask | layout_rotated |
                  layout_order_mask)) {
        layout.reason = "codes with flags that this version does not know";
        return layout;
    }
    layout.bits = format == format_ternary ? 2 : 4;
    layout.is_bf16 = (flags & layout_act_mask) >> layout_act_shift == layout_act_bf16;
    if ((group & (group - 1)) != 0 || group % 32 != 0 || group > 1024 || (layout.bits == 4 && group == 0)) {
        layout.reason = "groups of codes on CUDA devices are powers of two from 32 to 1024";
        return layout;
    }
    layout.padded_depth = codes_padded_depth(layout.bits, in_features);
    layout.row_bytes = layout.padded_depth * layout.bits / 8;
    layout.group = group;
    layout.groups = group ? (in_features + group - 1) / group : 1;
    layout.scales_offset = whole_lines(out_features * layout.row_bytes);
    const std::int64_t entries = codes_table_rows(out_features) * layout.groups;
    layout.zeros_offset = layout.scales_offset + whole_lines(entries * (group ? 2 : 4));
    const std::uint32_t zeros = flags & layout_zeros_mask;
    layout.bytes = layout.zeros_offset + whole_lines(entries * (zeros == layout_zero_points ? 1
                                                                : zeros == layout_minima    ? 2
                                                                                            : 0));
    return layout;
}

}  // namespace fastffn::cuda
