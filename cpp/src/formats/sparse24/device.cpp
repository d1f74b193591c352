#include "formats/sparse24/device.hpp"

#include <cstring>

#include "formats/sparse24/layout.hpp"

namespace fastffn {

namespace {

static_assert(cuda::sparse24_bf16 == static_cast<std::uint32_t>(Sparse24Values::bf16) &&
                  cuda::sparse24_f16 == static_cast<std::uint32_t>(Sparse24Values::f16) &&
                  cuda::sparse24_f32 == static_cast<std::uint32_t>(Sparse24Values::f32) &&
                  cuda::sparse24_int8 == static_cast<std::uint32_t>(Sparse24Values::int8),
              "the layout's own numbers of values");

// One group of four columns of one row, in both layouts: byte offsets, from the panels' and from the tiles' first byte.
struct Place {
    std::int64_t row;
    std::int64_t host_first, host_second, device_first;  // kept weights; the second of the device follows its first
    std::int64_t host_code, device_code;
    int host_shift, device_shift;
};

template <class F>
void for_each_group(const MatrixView& matrix, const cuda::DeviceLayout& device, F f) {
    const auto values = static_cast<Sparse24Values>(matrix.flags);
    const Sparse24Layout host(values);
    const std::int64_t panel_bytes = host.panel_bytes(matrix.in_features);
    const std::int64_t piece_bytes = cuda::sparse24_piece_bytes(matrix.flags);
    const std::int64_t piece_groups = cuda::sparse24_piece_columns(matrix.flags) / 4;
    for (std::int64_t row = 0; row < matrix.out_features; ++row) {
        const std::int64_t panel = row / panel_columns * panel_bytes, column = row % panel_columns;
        const std::int64_t tile = row / cuda::sparse24_tile_rows * device.tile_bytes;
        const auto in_tile = static_cast<int>(row % cuda::sparse24_tile_rows);
        for (std::int64_t group = 0; group * 4 < matrix.in_features; ++group) {
            const std::int64_t piece = tile + group / piece_groups * piece_bytes;
            const auto in_piece = static_cast<int>(group % piece_groups);
            const CodeAt code = code_at(host, group, column);
            const std::int64_t first = panel + value_offset(values, group, column);
            f(Place{row, first, first + second_offset(values),
                    piece + cuda::sparse24_value(matrix.flags, in_tile, in_piece), panel + code.byte,
                    piece + cuda::sparse24_position_byte(matrix.flags, in_tile, in_piece), code.shift,
                    cuda::sparse24_position_shift(in_piece)});
        }
    }
}

std::size_t value_bytes(std::uint32_t values) {
    return values == cuda::sparse24_int8 ? 1 : values == cuda::sparse24_f32 ? 4 : 2;
}

// Four bits from one byte into another.
void copy_code(std::byte from, int from_shift, std::byte& to, int to_shift) {
    const std::byte code = (from >> from_shift) & std::byte{0xF};
    to = (to & ~(std::byte{0xF} << to_shift)) | code << to_shift;
}

}  // namespace

void pack_sparse24_for_device(const MatrixView& matrix, const cuda::DeviceLayout& layout, std::byte* payload) noexcept {
    const Sparse24Payload from = sparse24_payload(matrix, static_cast<Sparse24Values>(matrix.flags));
    const std::int64_t piece_bytes = cuda::sparse24_piece_bytes(matrix.flags);
    const int positions = cuda::sparse24_positions_offset(matrix.flags);
    const std::size_t bytes = value_bytes(matrix.flags);
    for (std::int64_t at = 0; at < layout.scales_offset; at += piece_bytes)
        std::memset(payload + at + positions, 0xEE, static_cast<std::size_t>(piece_bytes - positions));
    for_each_group(matrix, layout, [&](const Place& at) {
        std::memcpy(payload + at.device_first, from.panels + at.host_first, bytes);
        std::memcpy(payload + at.device_first + bytes, from.panels + at.host_second, bytes);
        copy_code(from.panels[at.host_code], at.host_shift, payload[at.device_code], at.device_shift);
    });
    if (matrix.flags == cuda::sparse24_int8)
        std::memcpy(payload + layout.scales_offset, from.scales, static_cast<std::size_t>(matrix.out_features) * 4);
}

void restore_sparse24(const std::byte* device, const cuda::DeviceLayout& layout, const MatrixView& matrix,
                      std::byte* payload) noexcept {
    const auto values = static_cast<Sparse24Values>(matrix.flags);
    const Sparse24Layout host(values);
    const Sparse24Payload to = sparse24_payload(matrix, values);
    std::byte* const panels = payload + (to.panels - matrix.payload);
    std::byte* const sums = payload + (to.sums - matrix.payload);
    const std::size_t bytes = value_bytes(matrix.flags);
    for (std::int64_t block = 0; block < panels_of(matrix) * to.blocks; ++block)
        std::memset(panels + block * host.block_bytes(), 0xEE, static_cast<std::size_t>(host.code_bytes));
    for_each_group(matrix, layout, [&](const Place& at) {
        const std::byte* const kept = device + at.device_first;
        std::memcpy(panels + at.host_first, kept, bytes);
        std::memcpy(panels + at.host_second, kept + bytes, bytes);
        copy_code(device[at.device_code], at.device_shift, panels[at.host_code], at.host_shift);
        if (values != Sparse24Values::int8) return;
        std::int32_t sum;
        std::memcpy(&sum, sums + at.row * 4, 4);
        sum += static_cast<std::int8_t>(kept[0]) + static_cast<std::int8_t>(kept[1]);
        std::memcpy(sums + at.row * 4, &sum, 4);
    });
    if (values == Sparse24Values::int8)
        std::memcpy(payload, device + layout.scales_offset, static_cast<std::size_t>(matrix.out_features) * 4);
}

}  // namespace fastffn
