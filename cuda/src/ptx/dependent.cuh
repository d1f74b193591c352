// Launches that overlap: a kernel that was launched as a dependent (launch/launch.hpp) may begin while the one before it on the
// stream still runs. Until each of its threads has called wait_for_launch(), that thread may touch nothing that the one before
// writes, and write nothing that it reads. sm_90 and later; elsewhere launches follow each other and these do nothing. PTX ISA,
// "griddepcontrol".
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

// Waits until the launch before is done and all it wrote is seen.
__device__ __forceinline__ void wait_for_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// A dependent may begin, as soon as every block has come here or ended. It still waits for the end of this launch.
__device__ __forceinline__ void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace fastffn::ptx
