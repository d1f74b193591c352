// The asynchronous proxy: bulk copies and wgmma see shared memory through it, ordinary loads and stores do not. sm_90.
#pragma once

#include <cuda_runtime.h>

namespace fastffn::ptx {

// Lets the asynchronous proxy see what this thread has stored to shared memory. Every thread that stored calls it, before the
// barrier behind which wgmma or a bulk copy reads.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

}  // namespace fastffn::ptx
