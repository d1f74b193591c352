// hadamard and quantize on a device; and the transform that flags of a packed matrix ask for.
#pragma once

#include <cuda_runtime.h>

#include "abi/hadamard.hpp"
#include "launch/rows.hpp"

namespace fastffn::cuda {

// What rows of `cols` meet weights with these flags as: none where they ask for none. `block`: parameters[1] of the header.
RowHadamard hadamard_of_flags(std::uint32_t flags, std::uint32_t block, std::int64_t cols);

// nullptr: it can run; else why not.
const char* refusal(const HadamardCall& call);
const char* refusal(const QuantizeCall& call);

// Bytes of device memory that the call needs, 256-aligned; 0: none.
std::int64_t workspace_bytes(const HadamardCall& call);
std::int64_t workspace_bytes(const QuantizeCall& call);

cudaError_t run(const HadamardCall& call, void* workspace, cudaStream_t stream);
cudaError_t run(const QuantizeCall& call, void* workspace, cudaStream_t stream);

}  // namespace fastffn::cuda
