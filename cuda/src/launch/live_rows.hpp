// The up projection of a layer that runs its gate first (BitNet a4.8): only rows of w_up whose gate lives are read.
#pragma once

#include <cuda_runtime.h>

#include "abi.hpp"
#include "launch/matrix.hpp"

namespace fastffn::cuda {

// Tokens that share a reading of w_up: a row is read where any of their gates lives, so more gain little (of 8 tokens with a third of
// the gates live, 96 % of the rows are read).
constexpr std::int64_t live_rows_limit = 8;

// Whether there are kernels for this format.
bool has_live_rows(const DeviceMatrix& up);

// hidden[t][j] *= x[t] · w_up[j] + b_up[j] where hidden, f32, holds activated gates, for each j that has a gate other than zero (or a bias
// or row of x that is not finite); other columns stay as they are. Which rows are read is known on the device alone: the grid
// depends on shapes only. x: prepared for up.
cudaError_t launch_live_rows(const Input& x, const DeviceMatrix& up, const DeviceBias& bias, const DeviceRows& hidden,
                             cudaStream_t stream);

}  // namespace fastffn::cuda
