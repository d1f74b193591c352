// Packed weights as CUDA devices read them: header layout 2. The same formats and options as on the CPU, and the same codes and
// scales, in another order; made from the CPU's bytes, so that both quantise alike.
// cuda/src/layout.hpp says where everything is.
#pragma once

#include "formats/format.hpp"

namespace fastffn {

// Payload bytes of one matrix, a multiple of 64; 0: the format has no layout for devices yet.
std::int64_t device_matrix_bytes(const PackedHeader& header) noexcept;

// Why not, for a format without one.
const char* device_layout_refusal(const PackedHeader& header) noexcept;

// Bytes from row to row.
std::int64_t device_row_bytes(const PackedHeader& header) noexcept;

// Writes the device payload of one matrix from the CPU's; memory is zeroed. False: no memory.
bool pack_device_matrix(const PackedMatrix& matrix, std::int64_t index, std::byte* payload) noexcept;

// The CPU's payload of matrix `index` from the device's, bit for bit; memory is zeroed. header: the CPU's. Errors have no prefix.
Status restore_matrix(const PackedHeader& header, const FormatDefinition& format, std::int64_t index,
                      const std::byte* device, std::byte* payload);

}  // namespace fastffn
