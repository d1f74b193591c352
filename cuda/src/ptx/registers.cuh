// setmaxnreg: registers that one warpgroup gives back and another takes, by all its warps. A multiple of 8 from 24 to 256; a
// kernel has as many per thread at its start as __launch_bounds__ lets it. sm_90a.
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

template <int registers>
__device__ __forceinline__ void registers_decrease() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

template <int registers>
__device__ __forceinline__ void registers_increase() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

}  // namespace fastffn::ptx
