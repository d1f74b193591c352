// Packed weights as CUDA devices read them: header layout 2. The same formats and options as on the CPU, and the same codes and
// scales, in another order; made from the CPU's bytes, so that both quantise alike.
// cuda/src/layout.hpp says where everything is.
#pragma once

#include "formats/format.hpp"

namespace fastffn {

// Payload bytes of one matrix, a multiple of 64; 0: the format has no layout for devices yet.
std::int64_t device_matrix_bytes(const PackedHeader& header) noexcept;

// The header of the same weights for devices; an error that says why for weights that have no layout for them. One made of a
// CPU's header alone has the sizes; that of weights has all.
Status device_header(PackedHeader header, PackedHeader* result);
Status device_header(const PackedMatrix& matrix, PackedHeader* result);

// Writes the device payload of one matrix from the CPU's, whose header `matrix` has; memory is zeroed. False: no memory.
bool pack_device_matrix(const PackedMatrix& matrix, std::int64_t index, std::byte* payload) noexcept;

// The way back: a CPU's header, without the size of its matrices.
PackedHeader cpu_header(PackedHeader device) noexcept;
// The CPU's payload of one matrix from the device's, bit for bit; memory is zeroed. header: the CPU's. Errors have no prefix.
Status restore_matrix(const PackedHeader& header, const FormatDefinition& format, const std::byte* device,
                      std::byte* payload);

}  // namespace fastffn
