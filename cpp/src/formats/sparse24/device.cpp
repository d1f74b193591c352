#include "formats/sparse24/device.hpp"

#include <cstring>

#include "formats/sparse24/layout.hpp"

namespace fastffn {

static_assert(cuda::sparse24_bf16 == static_cast<std::uint32_t>(Sparse24Values::bf16) &&
                  cuda::sparse24_f16 == static_cast<std::uint32_t>(Sparse24Values::f16) &&
                  cuda::sparse24_f32 == static_cast<std::uint32_t>(Sparse24Values::f32) &&
                  cuda::sparse24_int8 == static_cast<std::uint32_t>(Sparse24Values::int8),
              "the layout's own numbers of values");

void pack_sparse24_for_device(const MatrixView& matrix, const cuda::DeviceLayout& layout, std::byte* payload) noexcept {
    const auto values = static_cast<Sparse24Values>(matrix.flags);
    const Sparse24Layout host(values);
    const Sparse24Payload from = sparse24_payload(matrix, values);
    const std::int64_t tiles = cuda::sparse24_tiles(matrix.out_features);
    const std::int64_t piece_bytes = cuda::sparse24_piece_bytes(matrix.flags);
    const std::int64_t piece_groups = cuda::sparse24_piece_columns(matrix.flags) / 4;
    const int positions = cuda::sparse24_positions_offset(matrix.flags);
    const auto value_bytes = static_cast<std::size_t>(values == Sparse24Values::int8  ? 1
                                                      : values == Sparse24Values::f32 ? 4
                                                                                      : 2);
    for (std::int64_t at = 0; at < tiles * layout.tile_bytes; at += piece_bytes)
        std::memset(payload + at + positions, 0xEE, static_cast<std::size_t>(piece_bytes - positions));
    for (std::int64_t row = 0; row < matrix.out_features; ++row) {
        const std::byte* const panel = from.panels + row / panel_columns * from.panel_bytes;
        std::byte* const tile = payload + row / cuda::sparse24_tile_rows * layout.tile_bytes;
        const auto in_tile = static_cast<int>(row % cuda::sparse24_tile_rows);
        for (std::int64_t group = 0; group * 4 < matrix.in_features; ++group) {
            std::byte* const piece = tile + group / piece_groups * piece_bytes;
            const auto in_piece = static_cast<int>(group % piece_groups);
            const std::byte* const kept = panel + value_offset(values, group, row % panel_columns);
            std::byte* const value = piece + cuda::sparse24_value(matrix.flags, in_tile, in_piece);
            std::memcpy(value, kept, value_bytes);
            std::memcpy(value + value_bytes, kept + second_offset(values), value_bytes);
            std::byte& code = piece[cuda::sparse24_position_byte(matrix.flags, in_tile, in_piece)];
            const int shift = cuda::sparse24_position_shift(in_piece);
            code &= ~static_cast<std::byte>(0xF << shift);
            code |= static_cast<std::byte>(read_code(panel, code_at(host, group, row % panel_columns)) << shift);
        }
        if (values == Sparse24Values::int8)
            std::memcpy(payload + layout.scales_offset + row * 4, from.scales + row * 4, 4);
    }
}

}  // namespace fastffn
