// The way back: the CPU's payload of a matrix from that for devices, byte for byte what pack() wrote.
#include <cstring>
#include <memory>
#include <new>

#include "core/kernel.hpp"
#include "cuda/src/layout.hpp"
#include "formats/codes/layout.hpp"
#include "formats/device_layout.hpp"
#include "formats/int8/layout.hpp"

namespace fastffn {

namespace {

Status no_memory() { return {StatusCode::out_of_memory, "no memory for a row of weights"}; }

// Rows of plain numbers are weights that the format can hold: packing them rounds nothing.
Status restore_rows(const PackedHeader& header, const FormatDefinition& format, const std::byte* device,
                    std::int64_t row_bytes, std::int64_t index, std::byte* payload) {
    const DType dtype = format.id == Format::f32 ? DType::f32 : format.id == Format::f16 ? DType::f16 : DType::bf16;
    const PlainMatrix rows{device, dtype, header.out_features, header.in_features, row_bytes, dtype_bytes(dtype)};
    const PackOptions none;
    return format.pack(rows, {header, none, index, payload, "matrix " + std::to_string(index)});
}

void restore_int8(const PackedHeader& header, const std::byte* device, const cuda::DeviceLayout& from,
                  std::byte* payload) {
    const Int8Layout layout = int8_layout(payload, header.out_features, header.in_features);
    for (std::int64_t row = 0; row < header.out_features; ++row) {
        const std::byte* codes = device + row * from.row_bytes;
        std::byte* column =
            const_cast<std::byte*>(layout.panels) + row / panel_columns * layout.panel_bytes + row % panel_columns * 4;
        std::int32_t sum = 0;
        for (std::int64_t k = 0; k < header.in_features; ++k) {
            column[k / 4 * 64 + k % 4] = codes[k];
            sum += static_cast<std::int8_t>(codes[k]);
        }
        std::memcpy(const_cast<std::byte*>(layout.scales) + row * 4, device + from.scales_offset + row * 4, 4);
        std::memcpy(const_cast<std::byte*>(layout.sums) + row * 4, &sum, 4);
    }
}

template <int bits>
void restore_codes(const PackedHeader& header, const std::byte* device, const cuda::DeviceLayout& from,
                   std::byte* payload) {
    const CodesLayout<bits> layout(payload, header.out_features, header.in_features, header.flags,
                                   header.parameters[0]);
    auto* scales = const_cast<std::byte*>(layout.scales);
    auto* zeros = const_cast<std::byte*>(layout.zeros);
    const std::int64_t scale_bytes = layout.group ? 2 : 4;
    const std::uint32_t kind = header.flags & codes_zeros_mask;
    const std::int64_t zero_bytes = kind == codes_zero_points ? 1 : kind == codes_minima ? 2 : 0;
    for (std::int64_t row = 0; row < header.out_features; ++row) {
        const std::byte* codes = device + row * from.row_bytes;
        for (std::int64_t k = 0; k < header.in_features; ++k) {
            const int code = static_cast<int>(codes[cuda::codes_byte(bits, k)]) >> cuda::codes_shift(bits, k) &
                             CodeTraits<bits>::mask;
            payload[layout.code_byte(row, k)] |= static_cast<std::byte>(code << layout.code_shift(row, k));
        }
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            const std::int64_t to = layout.entry(row, g * layout.group), at = row * layout.groups + g;
            std::memcpy(scales + to * scale_bytes, device + from.scales_offset + at * scale_bytes,
                        static_cast<std::size_t>(scale_bytes));
            if (zero_bytes)
                std::memcpy(zeros + to * zero_bytes, device + from.zeros_offset + at * zero_bytes,
                            static_cast<std::size_t>(zero_bytes));
        }
    }
}

}  // namespace

Status restore_matrix(const PackedHeader& header, const FormatDefinition& format, std::int64_t index,
                      const std::byte* device, std::byte* payload) {
    const cuda::DeviceLayout from =
        cuda::device_layout(header.format, header.flags, header.parameters[0], header.out_features, header.in_features);
    switch (format.id) {
        case Format::f32:
        case Format::f16:
        case Format::bf16: return restore_rows(header, format, device, from.row_bytes, index, payload);
        case Format::int8: restore_int8(header, device, from, payload); return {};
        case Format::ternary: restore_codes<2>(header, device, from, payload); return {};
        case Format::int4: restore_codes<4>(header, device, from, payload); return {};
        default: break;
    }
    return {StatusCode::unsupported,
            std::string("format '") + format.name + "' has no way back from devices to the CPU"};
}

}  // namespace fastffn
