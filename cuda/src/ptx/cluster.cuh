// Clusters: blocks that run at the same time on neighbouring multiprocessors and reach each other's shared memory. sm_90.
#pragma once

#include "ptx/bulk_copy.cuh"

namespace fastffn::ptx {

// Of this block in its cluster.
__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Waits for all threads of all blocks of the cluster, whole warps each. A block whose shared memory another one may still write to
// does not return before such a wait.
__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Arrives at the mbarrier that lies in the block of this rank where `local` lies in this one. Ordered for what wgmma has read; stores
// for other blocks would need .release.cluster, a memory barrier each time.
__device__ __forceinline__ void mbarrier_arrive_at(Mbarrier* local, unsigned rank) {
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [there];\n"
        "}" ::"r"(shared_address(local)),
        "r"(rank)
        : "memory");
}

// A box for several blocks, one bit each: written to the same place and counted by the mbarrier at the same place in all of them.
__device__ __forceinline__ void bulk_copy_box_to(unsigned short blocks, void* shared, const TensorMap* map, int column,
                                                 int row, Mbarrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(shared)),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier)), "h"(blocks)
        : "memory");
}

}  // namespace fastffn::ptx
