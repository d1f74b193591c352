// Routers on a device: one warp per token; see abi/route.hpp and fastffn/route.hpp.
//
// A warp keeps its token's scores in shared memory, or in the workspace where that is too small for so many experts. Ties, NaN and
// infinity are as on the CPU; sums run in another order. A token's bits do not depend on the tokens beside it.
#pragma once

#include <cuda_runtime.h>

#include "abi/route.hpp"

namespace fastffn::cuda {

const char* refusal(const RouteCall& call);
std::int64_t workspace_bytes(const RouteCall& call);
cudaError_t run(const RouteCall& call, void* workspace, cudaStream_t stream);

}  // namespace fastffn::cuda
