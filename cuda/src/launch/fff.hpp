// fff and fff_route on a device: which kernels a call runs, and the workspace between them.
//
// What differs from the CPU's rounding: the order of f32 sums (route: see kernels/fff_tiles.cuh), and leaves' hidden activations as
// in ffn (launch/ffn.hpp). Every plan routes and sums each token by itself: a token's bits depend on the plan, and not on the
// tokens beside it.
#pragma once

#include <cuda_runtime.h>

#include "abi/fff.hpp"

namespace fastffn::cuda {

// nullptr: it can run; else why not.
const char* refusal(const FffCall& call);
const char* refusal(const FffRouteCall& call);

// Bytes of device memory that the call needs, 256-aligned; 0: none.
std::int64_t workspace_bytes(const FffCall& call);
std::int64_t workspace_bytes(const FffRouteCall& call);

cudaError_t run(const FffCall& call, void* workspace, cudaStream_t stream);
cudaError_t run(const FffRouteCall& call, void* workspace, cudaStream_t stream);

}  // namespace fastffn::cuda
