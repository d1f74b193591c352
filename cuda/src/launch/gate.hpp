// y = act(gate) ⊙ up of rows that two products left: where w_gate and w_up cannot share one (other formats, other rows of x).
#pragma once

#include <cuda_runtime.h>

#include "abi.hpp"
#include "fastffn/activation.hpp"

namespace fastffn::cuda {

// gate, up and y: rows of one shape, f32, f16 or bf16, each its own; y may be up or gate itself.
cudaError_t launch_gate(Activation activation, const DeviceRows& gate, const DeviceRows& up, const DeviceRows& y,
                        cudaStream_t stream);

}  // namespace fastffn::cuda
