// cuda/src/ptx/cluster.cuh on the CPU.
#pragma once

#include "ptx/bulk_copy.cuh"

namespace fastffn::ptx {

inline unsigned cluster_rank() { return static_cast<unsigned>(emulator::cluster_rank()); }
inline void cluster_sync(FASTFFN_SITE) { emulator::cluster_sync(site); }
inline void mbarrier_arrive_at(Mbarrier* local, unsigned rank, FASTFFN_SITE) {
    emulator::mbarrier_arrive_at(site, local, static_cast<int>(rank));
}
inline void bulk_copy_box_to(unsigned short blocks, void* shared, const TensorMap* map, int column, int row,
                             Mbarrier* barrier, FASTFFN_SITE) {
    emulator::bulk_copy_box(site, shared, map, 2, {column, row, 0}, barrier, blocks);
}

}  // namespace fastffn::ptx
