// RouteKind::expert_choice: see kernels/expert_choice.cuh.
#pragma once

#include <cuda_runtime.h>

#include "abi/route.hpp"
#include "launch/pieces.hpp"

namespace fastffn::cuda {

// Pieces that only count say what it takes.
cudaError_t run_expert_choice(const RouteCall& call, Pieces& pieces, cudaStream_t stream);

}  // namespace fastffn::cuda
