// Stands before CUDA's header of this name where kernels are compiled for the CPU.
#pragma once

#include "emulator/vector_types.hpp"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

#define __global__
#define __device__
#define __host__
#define __constant__
// The section is filled with garbage before every block. A template's local variable is in it only where the template is in an
// anonymous namespace.
#define __shared__ static __attribute__((section("cuda_shared"), used))
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __grid_constant__

#include "emulator/device.hpp"
#include "emulator/host_api.hpp"
#include "emulator/host_timing.hpp"
#include "emulator/intrinsics.hpp"
