// mbarrier: a barrier in shared memory that counts arrivals of threads and bytes of bulk copies. Phases alternate between parity 0
// and 1; a phase ends when as many threads have arrived as init said and no expected byte is missing, and the next one begins
// with the same count. PTX ISA, "Parallel Synchronization and Communication Instructions: mbarrier". sm_90.
#pragma once

#include "ptx/shared.cuh"

namespace fastffn::ptx {

struct alignas(8) Mbarrier {
    unsigned long long opaque;
};

// By one thread. mbarrier_fence_init and a barrier of the block lie between this and anything else.
__device__ __forceinline__ void mbarrier_init(Mbarrier* barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Makes this thread's inits known to bulk copies, and to the other blocks of a cluster.
__device__ __forceinline__ void mbarrier_fence_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(Mbarrier* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and lets the phase wait for `bytes` more of bulk copies. What a copy does not find in memory counts too.
__device__ __forceinline__ void mbarrier_arrive_expect(Mbarrier* barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Waits until the phase of this parity is over. Of a new barrier, the phase before its first counts as over: parity 1.
__device__ __forceinline__ void mbarrier_wait(Mbarrier* barrier, unsigned parity) {
    const unsigned address = shared_address(barrier);
    unsigned done;
    do {
        asm volatile(
            "{\n"
            ".reg .pred done;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
            "selp.u32 %0, 1, 0, done;\n"
            "}"
            : "=r"(done)
            : "r"(address), "r"(parity)
            : "memory");
    } while (!done);
}

}  // namespace fastffn::ptx
