#include "formats/device_layout.hpp"

#include <memory>
#include <new>

#include "core/convert.hpp"

namespace fastffn {

namespace {

// Element type of the rows; false for formats without a device layout.
bool row_dtype(const PackedHeader& header, DType* dtype) noexcept {
    switch (static_cast<Format>(header.format)) {
        case Format::f32: *dtype = DType::f32; return true;
        case Format::f16: *dtype = DType::f16; return true;
        case Format::bf16: *dtype = DType::bf16; return true;
        default: return false;
    }
}

}  // namespace

std::int64_t device_row_bytes(const PackedHeader& header) noexcept {
    DType dtype;
    return row_dtype(header, &dtype) ? round_up(header.in_features * element_bytes(dtype), 16) : 0;
}

std::int64_t device_matrix_bytes(const PackedHeader& header) noexcept {
    return round_up(header.out_features * device_row_bytes(header), 64);
}

bool pack_device_matrix(const PackedMatrix& matrix, std::int64_t index, std::byte* payload) noexcept {
    DType dtype;
    if (!row_dtype(matrix.header, &dtype)) return false;
    const auto cols = static_cast<std::size_t>(matrix.header.in_features);
    const std::unique_ptr<float[]> row(new (std::nothrow) float[cols]);
    if (!row) return false;
    const std::int64_t row_bytes = device_row_bytes(matrix.header), element = element_bytes(dtype);
    for (std::int64_t r = 0; r < matrix.header.out_features; ++r) {
        matrix.format->unpack_row(matrix.view(index), r, row.get());
        for (std::size_t c = 0; c < cols; ++c)
            store_f32(payload + r * row_bytes + static_cast<std::int64_t>(c) * element, dtype, row[c]);
    }
    return true;
}

}  // namespace fastffn
