// The way back: the CPU's payload of a matrix from that for devices, byte for byte what pack() wrote.
#include <cstring>

#include "cuda/src/layout/lowrank.hpp"
#include "formats/codes/layout.hpp"
#include "formats/container.hpp"
#include "formats/device_layout.hpp"
#include "formats/int8/layout.hpp"
#include "formats/lowrank/layout.hpp"
#include "formats/sparse24/device.hpp"

namespace fastffn {

namespace {

// A matrix of a plain format as devices have it: rows, and for int8 a scale of each.
struct DeviceRows {
    const std::byte* rows;
    std::int64_t row_bytes;
    const std::byte* scales;
    std::int64_t out_features, in_features;
};

// Rows of plain numbers are weights that the format can hold: packing them rounds nothing.
Status restore_numbers(const FormatDefinition& format, const DeviceRows& from, std::byte* payload) {
    const DType dtype = format.id == Format::f32 ? DType::f32 : format.id == Format::f16 ? DType::f16 : DType::bf16;
    const PlainMatrix rows{from.rows, dtype, from.out_features, from.in_features, from.row_bytes, dtype_bytes(dtype)};
    const PackedHeader header = new_header(format.id, 1, from.out_features, from.in_features);
    const PackOptions none;
    return format.pack(rows, {header, none, 0, payload, "w"});
}

void restore_int8(const DeviceRows& from, std::byte* payload) {
    const Int8Layout layout = int8_layout(payload, from.out_features, from.in_features);
    for (std::int64_t row = 0; row < from.out_features; ++row) {
        const std::byte* codes = from.rows + row * from.row_bytes;
        std::byte* column =
            const_cast<std::byte*>(layout.panels) + row / panel_columns * layout.panel_bytes + row % panel_columns * 4;
        std::int32_t sum = 0;
        for (std::int64_t k = 0; k < from.in_features; ++k) {
            column[k / 4 * 64 + k % 4] = codes[k];
            sum += static_cast<std::int8_t>(codes[k]);
        }
        std::memcpy(const_cast<std::byte*>(layout.scales) + row * 4, from.scales + row * 4, 4);
        std::memcpy(const_cast<std::byte*>(layout.sums) + row * 4, &sum, 4);
    }
}

Status restore_rows(const FormatDefinition& format, const DeviceRows& from, std::byte* payload) {
    if (format.id != Format::int8) return restore_numbers(format, from, payload);
    restore_int8(from, payload);
    return {};
}

Status restore_pair(const PackedHeader& header, const std::byte* device, std::byte* payload) {
    const cuda::LowRankLayout from = cuda::lowrank_layout(header.parameters[0], static_cast<int>(header.parameters[1]),
                                                          header.out_features, header.in_features);
    const LowRankView to = lowrank_view(
        {payload, header.out_features, header.in_features, header.flags, {header.parameters[0], header.parameters[1]}});
    const std::int64_t element = to.factors->id == Format::int8 ? 1 : to.factors->id == Format::f32 ? 4 : 2;
    const auto at = [&](const MatrixView& matrix) { return payload + (matrix.payload - payload); };
    for (std::int64_t block = 0; block < to.blocks(); ++block) {
        const DeviceRows inner{device + block * lowrank_block * element, from.inner.row_bytes,
                               device + from.inner.scales_offset + block * to.rank * 4, to.rank,
                               to.block_columns(block)};
        if (Status status = restore_rows(*to.factors, inner, at(to.inner(block))); !status.ok()) return status;
    }
    const std::byte* const outer = device + from.outer_offset;
    const Status status = restore_rows(
        *to.factors, {outer, from.outer.row_bytes, outer + from.outer.scales_offset, header.out_features, to.rank},
        at(to.outer()));
    lowrank_fingerprint(to, payload);
    return status;
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
            const int code = static_cast<int>(codes[cuda::codes_byte(bits, k, from.is_bf16)]) >>
                                 cuda::codes_shift(bits, k, from.is_bf16) &
                             CodeTraits<bits>::mask;
            payload[layout.code_byte(row, k)] |= static_cast<std::byte>(code << layout.code_shift(row, k));
        }
        for (std::int64_t g = 0; g < layout.groups; ++g) {
            const std::int64_t to = layout.entry(row, g * layout.group),
                               at = cuda::codes_entry(header.out_features, row, g);
            std::memcpy(scales + to * scale_bytes, device + from.scales_offset + at * scale_bytes,
                        static_cast<std::size_t>(scale_bytes));
            if (zero_bytes)
                std::memcpy(zeros + to * zero_bytes, device + from.zeros_offset + at * zero_bytes,
                            static_cast<std::size_t>(zero_bytes));
        }
    }
}

}  // namespace

PackedHeader cpu_header(PackedHeader header) noexcept {
    header.layout = cpu_panels_layout;
    if (static_cast<Format>(header.format) == Format::lowrank) {  // a hash of u beside the format of the factors
        header.flags = 0;
        header.parameters[1] = static_cast<std::uint32_t>(cuda::lowrank_factors_of(header.parameters[1]));
    }
    return header;
}

Status restore_matrix(const PackedHeader& header, const FormatDefinition& format, const std::byte* device,
                      std::byte* payload) {
    if (format.id == Format::lowrank) return restore_pair(header, device, payload);
    const cuda::DeviceLayout from =
        cuda::device_layout(header.format, header.flags, header.parameters[0], header.out_features, header.in_features);
    switch (format.id) {
        case Format::f32:
        case Format::f16:
        case Format::bf16:
        case Format::int8:
            return restore_rows(
                format, {device, from.row_bytes, device + from.scales_offset, header.out_features, header.in_features},
                payload);
        case Format::ternary: restore_codes<2>(header, device, from, payload); return {};
        case Format::int4: restore_codes<4>(header, device, from, payload); return {};
        case Format::sparse24:
            restore_sparse24(device, from, {payload, header.out_features, header.in_features, header.flags, {0, 0}},
                             payload);
            return {};
        default: break;
    }
    return {StatusCode::unsupported,
            std::string("format '") + format.name + "' has no way back from devices to the CPU"};
}

}  // namespace fastffn
