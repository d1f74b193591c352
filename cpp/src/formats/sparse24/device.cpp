#include "formats/sparse24/device.hpp"

#include <cstring>

#include "formats/sparse24/layout.hpp"

namespace fastffn {

static_assert(cuda::sparse24_bf16 == static_cast<std::uint32_t>(Sparse24Values::bf16) &&
                  cuda::sparse24_f16 == static_cast<std::uint32_t>(Sparse24Values::f16) &&
                  cuda::sparse24_f32 == static_cast<std::uint32_t>(Sparse24Values::f32) &&
                  cuda::sparse24_int8 == static_cast<std::uint32_t>(Sparse24Values::int8),
              "the layout's own numbers of values");

namespace {

std::size_t value_bytes_of(Sparse24Values values) {
    return values == Sparse24Values::int8 ? 1 : values == Sparse24Values::f32 ? 4 : 2;
}

}  // namespace

void pack_sparse24_for_device(const MatrixView& matrix, const cuda::DeviceLayout& layout, std::byte* payload) noexcept {
    const auto values = static_cast<Sparse24Values>(matrix.flags);
    const Sparse24Layout host(values);
    const Sparse24Payload from = sparse24_payload(matrix, values);
    const std::int64_t tiles = cuda::sparse24_tiles(matrix.out_features);
    const std::int64_t piece_bytes = cuda::sparse24_piece_bytes(matrix.flags);
    const std::int64_t piece_groups = cuda::sparse24_piece_columns(matrix.flags) / 4;
    const int positions = cuda::sparse24_positions_offset(matrix.flags);
    const std::size_t value_bytes = value_bytes_of(values);
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

void restore_sparse24(const MatrixView& matrix, const cuda::DeviceLayout& layout, const std::byte* device,
                      std::byte* payload) noexcept {
    const auto values = static_cast<Sparse24Values>(matrix.flags);
    const Sparse24Layout host(values);
    const Sparse24Payload to = sparse24_payload(matrix, values);
    auto* const panels = payload + (to.panels - matrix.payload);
    const std::int64_t piece_bytes = cuda::sparse24_piece_bytes(matrix.flags);
    const std::int64_t piece_groups = cuda::sparse24_piece_columns(matrix.flags) / 4;
    const std::size_t value_bytes = value_bytes_of(values);
    for (std::int64_t block = 0; block < panels_of(matrix) * to.blocks; ++block)
        std::memset(panels + block * host.block_bytes(), 0xEE, static_cast<std::size_t>(host.code_bytes));
    for (std::int64_t row = 0; row < matrix.out_features; ++row) {
        std::byte* const panel = panels + row / panel_columns * to.panel_bytes;
        const std::byte* const tile = device + row / cuda::sparse24_tile_rows * layout.tile_bytes;
        const auto in_tile = static_cast<int>(row % cuda::sparse24_tile_rows);
        std::int32_t sum = 0;
        for (std::int64_t group = 0; group * 4 < matrix.in_features; ++group) {
            const std::byte* const piece = tile + group / piece_groups * piece_bytes;
            const auto in_piece = static_cast<int>(group % piece_groups);
            const std::byte* const value = piece + cuda::sparse24_value(matrix.flags, in_tile, in_piece);
            std::byte* const kept = panel + value_offset(values, group, row % panel_columns);
            std::memcpy(kept, value, value_bytes);
            std::memcpy(kept + second_offset(values), value + value_bytes, value_bytes);
            const auto bits =
                static_cast<std::uint32_t>(piece[cuda::sparse24_position_byte(matrix.flags, in_tile, in_piece)]) >>
                cuda::sparse24_position_shift(in_piece);
            const CodeAt at = code_at(host, group, row % panel_columns);
            panel[at.byte] &= ~static_cast<std::byte>(0xF << at.shift);
            panel[at.byte] |= static_cast<std::byte>((bits & 0xF) << at.shift);
            if (values == Sparse24Values::int8)
                sum += static_cast<std::int8_t>(value[0]) + static_cast<std::int8_t>(value[1]);
        }
        if (values != Sparse24Values::int8) continue;
        std::memcpy(payload + (to.scales - matrix.payload) + row * 4, device + layout.scales_offset + row * 4, 4);
        std::memcpy(payload + (to.sums - matrix.payload) + row * 4, &sum, 4);
    }
}

}  // namespace fastffn
