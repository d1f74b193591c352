// TMA: one thread starts a copy of many bytes from global to shared memory; it is done when the mbarrier has got all its bytes,
// and only who has waited there may read them. PTX ISA, "cp.async.bulk" and "cp.async.bulk.tensor". sm_90.
#pragma once

#include "ptx/mbarrier.cuh"
#include "ptx/tensor_map.cuh"

namespace fastffn::ptx {

// Bytes in a row: both addresses 16-aligned, their number a multiple of 16.
__device__ __forceinline__ void bulk_copy(void* shared, const void* global, unsigned bytes, Mbarrier* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}

// The map's box from column and row `column`, `row` on, those behind the end of the tensor as zeros, swizzled as the map says.
__device__ __forceinline__ void bulk_copy_box(void* shared, const TensorMap* map, int column, int row,
                                              Mbarrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
            shared_address(shared)),
        "l"(map), "r"(column), "r"(row), "r"(shared_address(barrier))
        : "memory");
}

// The same of a stack of matrices.
__device__ __forceinline__ void bulk_copy_box(void* shared, const TensorMap* map, int column, int row, int matrix,
                                              Mbarrier* barrier) {
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
        "[%5];" ::"r"(shared_address(shared)),
        "l"(map), "r"(column), "r"(row), "r"(matrix), "r"(shared_address(barrier))
        : "memory");
}

// Fetches the map itself, before the first copy.
__device__ __forceinline__ void prefetch_map(const TensorMap* map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

}  // namespace fastffn::ptx
