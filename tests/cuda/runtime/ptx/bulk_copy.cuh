// cuda/src/ptx/bulk_copy.cuh on the CPU.
#pragma once

#include "ptx/mbarrier.cuh"
#include "ptx/tensor_map.cuh"

namespace fastffn::ptx {

inline void bulk_copy(void* shared, const void* global, unsigned bytes, Mbarrier* barrier, FASTFFN_SITE) {
    emulator::bulk_copy(site, shared, global, bytes, barrier);
}
inline void bulk_copy_box(void* shared, const TensorMap* map, int column, int row, Mbarrier* barrier, FASTFFN_SITE) {
    emulator::bulk_copy_box(site, shared, map, 2, {column, row, 0}, barrier);
}
inline void bulk_copy_box(void* shared, const TensorMap* map, int column, int row, int matrix, Mbarrier* barrier,
                          FASTFFN_SITE) {
    emulator::bulk_copy_box(site, shared, map, 3, {column, row, matrix}, barrier);
}
inline void prefetch_map(const TensorMap*) {}

}  // namespace fastffn::ptx
