#include "formats/device_layout.hpp"

#include <cstring>
#include <memory>
#include <new>

#include "core/convert.hpp"
#include "cuda/src/layout.hpp"
#include "cuda/src/layout/lowrank.hpp"
#include "formats/codes/layout.hpp"
#include "formats/lowrank/layout.hpp"
#include "formats/sparse24/device.hpp"

namespace fastffn {

namespace {

static_assert(cuda::format_lowrank == static_cast<int>(Format::lowrank) && cuda::lowrank_block_columns == lowrank_block,
              "and of pairs");
static_assert(cuda::format_f32 == static_cast<int>(Format::f32) && cuda::format_f16 == static_cast<int>(Format::f16) &&
                  cuda::format_bf16 == static_cast<int>(Format::bf16) &&
                  cuda::format_int8 == static_cast<int>(Format::int8) &&
                  cuda::format_ternary == static_cast<int>(Format::ternary) &&
                  cuda::format_int4 == static_cast<int>(Format::int4) &&
                  cuda::format_sparse24 == static_cast<int>(Format::sparse24),
              "the layout's own numbers of formats");
static_assert(cuda::layout_zeros_mask == codes_zeros_mask && cuda::layout_zero_points == codes_zero_points &&
                  cuda::layout_minima == codes_minima && cuda::layout_act_mask == codes_act_mask &&
                  cuda::layout_act_int4 == codes_act_int4 && cuda::layout_act_bf16 == codes_act_bf16 &&
                  cuda::layout_scale_mask == codes_scale_mask && cuda::layout_order_mask == codes_order_mask &&
                  cuda::layout_hadamard_mask == codes_hadamard_mask && cuda::layout_rotated == codes_rotated,
              "the layout's own flags of codes");

cuda::DeviceLayout layout_of(const PackedHeader& header) noexcept {
    return cuda::device_layout(header.format, header.flags, header.parameters[0], header.out_features,
                               header.in_features);
}

template <int bits>
void pack_codes(const MatrixView& matrix, const cuda::DeviceLayout& device, std::byte* payload) {
    const CodesLayout<bits> host(matrix);
    const std::int64_t scale_bytes = host.group ? 2 : 4;
    const std::uint32_t zeros = matrix.flags & codes_zeros_mask;
    const std::int64_t zero_bytes = zeros == codes_zero_points ? 1 : zeros == codes_minima ? 2 : 0;
    for (std::int64_t row = 0; row < matrix.out_features; ++row) {
        for (std::int64_t k = 0; k < matrix.in_features; ++k) {
            const int code = static_cast<int>(host.panels[host.code_byte(row, k)]) >> host.code_shift(row, k) &
                             CodeTraits<bits>::mask;
            payload[row * device.row_bytes + cuda::codes_byte(bits, k, device.is_bf16)] |=
                static_cast<std::byte>(code << cuda::codes_shift(bits, k, device.is_bf16));
        }
        for (std::int64_t g = 0; g < host.groups; ++g) {
            const std::int64_t from = host.entry(row, g * host.group),
                               to = cuda::codes_entry(matrix.out_features, row, g);
            std::memcpy(payload + device.scales_offset + to * scale_bytes, host.scales + from * scale_bytes,
                        static_cast<std::size_t>(scale_bytes));
            if (zero_bytes)
                std::memcpy(payload + device.zeros_offset + to * zero_bytes, host.zeros + from * zero_bytes,
                            static_cast<std::size_t>(zero_bytes));
        }
    }
}

// Rows of a plain format: f32, f16, bf16, or int8 and its scales.
bool pack_rows(const FormatDefinition& format, const MatrixView& matrix, std::int64_t row_bytes, std::byte* rows,
               std::byte* scales) {
    const auto cols = static_cast<std::size_t>(matrix.in_features);
    const std::unique_ptr<float[]> row(new (std::nothrow) float[cols]);
    if (!row) return false;
    for (std::int64_t r = 0; r < matrix.out_features; ++r) {
        std::byte* const out = rows + r * row_bytes;
        if (format.id == Format::int8) {
            float scale = 0;
            format.codes->read_row(matrix, r, out, &scale, nullptr);
            std::memcpy(scales + r * 4, &scale, 4);
            continue;
        }
        const DType dtype = format.id == Format::f32 ? DType::f32 : format.id == Format::f16 ? DType::f16 : DType::bf16;
        format.unpack_row(matrix, r, row.get());
        for (std::size_t c = 0; c < cols; ++c)
            store_f32(out + static_cast<std::int64_t>(c) * element_bytes(dtype), dtype, row[c]);
    }
    return true;
}

cuda::LowRankLayout lowrank_layout_of(const PackedHeader& header) {
    return cuda::lowrank_layout(header.parameters[0], cuda::lowrank_factors_of(header.parameters[1]),
                                header.out_features, header.in_features);
}

bool pack_pair(const PackedHeader& header, const MatrixView& matrix, std::byte* payload) {
    const cuda::LowRankLayout device = lowrank_layout_of(header);
    const LowRankView host = lowrank_view(matrix);
    const std::int64_t element = host.factors->id == Format::int8 ? 1 : host.factors->id == Format::f32 ? 4 : 2;
    for (std::int64_t block = 0; block < host.blocks(); ++block)
        if (!pack_rows(*host.factors, host.inner(block), device.inner.row_bytes,
                       payload + block * lowrank_block * element,
                       payload + device.inner.scales_offset + block * host.rank * 4))
            return false;
    std::byte* const outer = payload + device.outer_offset;
    return pack_rows(*host.factors, host.outer(), device.outer.row_bytes, outer, outer + device.outer.scales_offset);
}

// 64 bits of the hashes of every u in a stack.
std::uint64_t inner_hash(const PackedMatrix& matrix) {
    std::uint64_t hash = 0x9e3779b97f4a7c15u;
    for (std::int64_t i = 0; i < matrix.header.count; ++i)
        for (int half = 0; half < 2; ++half) {
            std::uint64_t word;
            std::memcpy(&word, matrix.view(i).payload + 8 * half, 8);
            hash = (hash ^ word) * 0xff51afd7ed558ccdu;
            hash ^= hash >> 32;
        }
    return hash;
}

std::int64_t bytes_for(const PackedHeader& header) {
    return header.format == cuda::format_lowrank ? lowrank_layout_of(header).bytes : layout_of(header).bytes;
}

const char* refusal_of(const PackedHeader& header) {
    return header.format == cuda::format_lowrank ? lowrank_layout_of(header).reason : layout_of(header).reason;
}

}  // namespace

std::int64_t device_matrix_bytes(const PackedHeader& header) noexcept { return bytes_for(header); }

Status device_header(PackedHeader header, PackedHeader* result) {
    header.layout = device_rows_layout;
    header.matrix_bytes = bytes_for(header);
    if (header.matrix_bytes == 0)
        return {StatusCode::unsupported, std::string("pack: format '") +
                                             format_name(static_cast<Format>(header.format)) +
                                             "': " + refusal_of(header)};
    *result = header;
    return {};
}

Status device_header(const PackedMatrix& matrix, PackedHeader* result) {
    if (Status status = device_header(matrix.header, result); !status.ok()) return status;
    if (matrix.format->id != Format::lowrank) return {};
    const std::uint64_t hash = inner_hash(matrix);
    result->flags = static_cast<std::uint32_t>(hash);
    result->parameters[1] = cuda::lowrank_with_hash(result->parameters[1], hash);
    return {};
}

bool pack_device_matrix(const PackedMatrix& matrix, std::int64_t index, std::byte* payload) noexcept {
    const MatrixView view = matrix.view(index);
    if (matrix.format->id == Format::lowrank) return pack_pair(matrix.header, view, payload);
    const cuda::DeviceLayout layout = layout_of(matrix.header);
    if (matrix.format->id == Format::ternary) return pack_codes<2>(view, layout, payload), true;
    if (matrix.format->id == Format::int4) return pack_codes<4>(view, layout, payload), true;
    if (matrix.format->id == Format::sparse24) return pack_sparse24_for_device(view, layout, payload), true;
    return pack_rows(*matrix.format, view, layout.row_bytes, payload, payload + layout.scales_offset);
}

}  // namespace fastffn
