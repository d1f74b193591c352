#include "formats/device_layout.hpp"

#include <cstring>
#include <memory>
#include <new>

#include "core/convert.hpp"
#include "cuda/src/layout.hpp"
#include "formats/codes/layout.hpp"

namespace fastffn {

namespace {

static_assert(cuda::format_f32 == static_cast<int>(Format::f32) && cuda::format_f16 == static_cast<int>(Format::f16) &&
                  cuda::format_bf16 == static_cast<int>(Format::bf16) &&
                  cuda::format_int8 == static_cast<int>(Format::int8) &&
                  cuda::format_ternary == static_cast<int>(Format::ternary) &&
                  cuda::format_int4 == static_cast<int>(Format::int4),
              "the layout's own numbers of formats");
static_assert(cuda::layout_zeros_mask == codes_zeros_mask && cuda::layout_zero_points == codes_zero_points &&
                  cuda::layout_minima == codes_minima && cuda::layout_act_mask == codes_act_mask &&
                  cuda::layout_act_int4 == codes_act_int4 && cuda::layout_act_bf16 == codes_act_bf16 &&
                  cuda::layout_scale_mask == codes_scale_mask && cuda::layout_order_mask == codes_order_mask,
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

}  // namespace

std::int64_t device_row_bytes(const PackedHeader& header) noexcept { return layout_of(header).row_bytes; }

std::int64_t device_matrix_bytes(const PackedHeader& header) noexcept { return layout_of(header).bytes; }

const char* device_layout_refusal(const PackedHeader& header) noexcept { return layout_of(header).reason; }

bool pack_device_matrix(const PackedMatrix& matrix, std::int64_t index, std::byte* payload) noexcept {
    const cuda::DeviceLayout layout = layout_of(matrix.header);
    const MatrixView view = matrix.view(index);
    const auto format = static_cast<Format>(matrix.header.format);
    if (format == Format::ternary) return pack_codes<2>(view, layout, payload), true;
    if (format == Format::int4) return pack_codes<4>(view, layout, payload), true;
    const auto cols = static_cast<std::size_t>(view.in_features);
    const std::unique_ptr<float[]> row(new (std::nothrow) float[cols]);
    if (!row) return false;
    for (std::int64_t r = 0; r < view.out_features; ++r) {
        std::byte* const out = payload + r * layout.row_bytes;
        if (format == Format::int8) {
            float scale = 0;
            matrix.format->codes->read_row(view, r, out, &scale, nullptr);
            std::memcpy(payload + layout.scales_offset + r * 4, &scale, 4);
            continue;
        }
        const DType dtype = format == Format::f32 ? DType::f32 : format == Format::f16 ? DType::f16 : DType::bf16;
        matrix.format->unpack_row(view, r, row.get());
        for (std::size_t c = 0; c < cols; ++c)
            store_f32(out + static_cast<std::int64_t>(c) * element_bytes(dtype), dtype, row[c]);
    }
    return true;
}

}  // namespace fastffn
