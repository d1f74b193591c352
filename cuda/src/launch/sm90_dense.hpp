// The products of launch/dense.hpp on Hopper (compute capability 9.0, native code for sm_90a).
#pragma once

#include "launch/dense.hpp"

namespace fastffn::cuda {

// Whether the device that is current is one, this build has code for it, and nobody forbids it.
bool sm90_available();

// That, and whether the arguments allow it.
bool sm90_dense_serves(const DenseArgs& args);

// That, and enough tiles: below, launch_many_tokens' small ones reach more multiprocessors.
bool prefers_sm90_dense(const DenseArgs& args);

// cudaErrorNotSupported, with nothing launched, where the driver makes no tensor maps.
cudaError_t launch_sm90_dense(Product product, const DenseArgs& args, cudaStream_t stream);

// The same of a stack, for groups cut into tiles of 128.
bool prefers_sm90_dense(const DenseArgs& args, const TokenGroups& groups);
cudaError_t launch_sm90_dense(Product product, const DenseArgs& args, const TokenGroups& groups, cudaStream_t stream);

// False: the process does without Hopper's own kernels; for tests and comparisons. True at first.
void allow_sm90(bool allowed);

}  // namespace fastffn::cuda
