// linear and ffn on a device: which kernels a call runs, and the workspace between them.
//
// Many tokens run in chunks, so that the hidden rows never take more than some 32 MiB (64 where gate and up are products of their own).
//
// What differs from the CPU's rounding: with f16 weights and f16 x, the hidden activations of ffn are rounded to f16 too.
#pragma once

#include <cuda_runtime.h>

#include "abi.hpp"

namespace fastffn::cuda {

// nullptr: it can run; else why not.
const char* refusal(const LinearCall& call);
const char* refusal(const FfnCall& call);

// Bytes of device memory that the call needs, 256-aligned; 0: none.
std::int64_t workspace_bytes(const LinearCall& call);
std::int64_t workspace_bytes(const FfnCall& call);

// Launch on the stream; the arguments were checked. The first launch that fails ends the call; last_launch() says which.
cudaError_t run(const LinearCall& call, void* workspace, cudaStream_t stream);
cudaError_t run(const FfnCall& call, void* workspace, cudaStream_t stream);

}  // namespace fastffn::cuda
