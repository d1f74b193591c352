// sparse24 on Hopper's wgmma.sp, where the device is one.
#pragma once

#include "launch/sparse24.hpp"

namespace fastffn::cuda {

// Whether its tiles of 192 tokens × 192 rows serve this call better than mma.sp's: products of one matrix on tensor cores that fill
// enough of them. Never on devices other than sm_90, and never run on one so far.
bool prefers_sm90_sparse24(Sparse24Product product, const Sparse24Args& args);

// cudaErrorNotSupported: not these arguments, or not this device; nothing was launched.
cudaError_t launch_sm90_sparse24(Sparse24Product product, const Sparse24Args& args, cudaStream_t stream);

}  // namespace fastffn::cuda
