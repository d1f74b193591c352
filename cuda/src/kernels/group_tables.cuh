// Counting sort of slots by their group, and tiles of the sorted positions.
//
//   small    one block: counts in shared memory, a scan, then one warp places 32 slots at a time in their order
//   large    count per chunk of slots | prefix over chunks per group | scan over groups | place, one block a chunk
//
// Within 32 slots lanes of one group rank themselves by __match_any_sync; integer additions are all that is atomic. So the
// order is that of a stable sort.
#pragma once

#include <cuda_runtime.h>

#include "kernels/scan.cuh"
#include "launch/group_tables.hpp"
#include "ptx/shared.cuh"

namespace fastffn::cuda {
namespace {

constexpr int group_threads = 256, scan_threads = 1024;

// The group of slot i, -1: none.
__device__ __forceinline__ int group_of(const SlotIds& ids, int slots, int groups, int i) {
    const std::int64_t at = i / slots * ids.token_stride + i % slots * ids.slot_stride;
    const std::int64_t id =
        ids.is_64 ? static_cast<const std::int64_t*>(ids.data)[at] : static_cast<const std::int32_t*>(ids.data)[at];
    return id >= 0 && id < groups ? static_cast<int>(id) : -1;
}

// counts (they may be the offsets) → where each group begins, in offsets and, where given, in starts.
template <int threads>
__device__ __forceinline__ void scan_groups(const std::int32_t* counts, int groups, std::int32_t* offsets,
                                            std::int32_t* starts) {
    int total = 0;
    for (int first = 0; first < groups; first += threads) {
        const int g = first + static_cast<int>(threadIdx.x);
        int sum = 0;
        const int start = total + before<threads>(g < groups ? counts[g] : 0, &sum);
        if (g < groups) {
            offsets[g] = start;
            if (starts) starts[g] = start;
        }
        total += sum;
    }
    if (threadIdx.x == 0) offsets[groups] = total;
}

template <int threads>
__device__ __forceinline__ void cut_tiles(const TokenGroups& stack) {
    auto* const tiles = const_cast<std::int32_t*>(stack.tiles);
    int total = 0;
    for (int first = 0; first < stack.groups; first += threads) {
        const int g = first + static_cast<int>(threadIdx.x);
        const int begin = g < stack.groups ? stack.offsets[g] : 0, end = g < stack.groups ? stack.offsets[g + 1] : 0;
        const int own = (end - begin + stack.tile_tokens - 1) / stack.tile_tokens;
        int sum = 0;
        const int start = total + before<threads>(own, &sum);
        for (int i = 0; i < own; i++) {
            tiles[2 * (start + i)] = g;
            tiles[2 * (start + i) + 1] = begin + i * stack.tile_tokens;
        }
        total += sum;
    }
    if (threadIdx.x == 0) *const_cast<std::int32_t*>(stack.tile_count) = total;
}

// One warp: slots first … last - 1 to their positions, in order. counters[g]: the next position of group g.
__device__ __forceinline__ void place_slots(const SlotIds& ids, const GroupTables& tables, int first, int last,
                                            std::int32_t* counters) {
    const int lane = static_cast<int>(threadIdx.x) % 32, slots = static_cast<int>(tables.slots);
    for (int base = first; base < last; base += 32) {
        const int i = base + lane;
        const int group = i < last ? group_of(ids, slots, static_cast<int>(tables.groups), i) : -1;
        const unsigned same = __match_any_sync(0xffffffffu, group);
        const int rank = __popc(same & ((1u << lane) - 1));
        const int start = group >= 0 ? counters[group] : 0;
        __syncwarp();
        if (group >= 0) {
            tables.rows[start + rank] = i / slots;
            if (rank == 0) counters[group] = start + __popc(same);
        }
        if (i < last) tables.places[i] = group >= 0 ? start + rank : -1;
        __syncwarp();
    }
}

// Dynamic shared memory: [groups] counters.
__global__ void __launch_bounds__(group_threads)
    small_tables_kernel(SlotIds ids, GroupTables tables, TokenGroups stack, bool has_stack) {
    auto* const counters = reinterpret_cast<std::int32_t*>(ptx::dynamic_shared());
    const int groups = static_cast<int>(tables.groups), slots = static_cast<int>(tables.slots),
              all = static_cast<int>(tables.tokens * tables.slots);
    for (int g = static_cast<int>(threadIdx.x); g < groups; g += group_threads) counters[g] = 0;
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < all; i += group_threads)
        if (const int group = group_of(ids, slots, groups, i); group >= 0) atomicAdd(counters + group, 1);
    __syncthreads();
    scan_groups<group_threads>(counters, groups, tables.offsets, counters);
    __syncthreads();
    if (threadIdx.x < 32) place_slots(ids, tables, 0, all, counters);
    if (has_stack) cut_tiles<group_threads>(stack);
}

// counts[chunk][g]
__global__ void __launch_bounds__(group_threads) count_slots_kernel(SlotIds ids, GroupTables tables, int chunk) {
    const int groups = static_cast<int>(tables.groups), slots = static_cast<int>(tables.slots);
    const std::int64_t all = tables.tokens * tables.slots, first = static_cast<std::int64_t>(blockIdx.x) * chunk;
    const auto last = static_cast<int>(min(all, first + chunk));
    std::int32_t* const counts = tables.counts + blockIdx.x * tables.groups;
    for (int g = static_cast<int>(threadIdx.x); g < groups; g += group_threads) counts[g] = 0;
    __syncthreads();
    for (int i = static_cast<int>(first) + static_cast<int>(threadIdx.x); i < last; i += group_threads)
        if (const int group = group_of(ids, slots, groups, i); group >= 0) atomicAdd(counts + group, 1);
}

// Per group: counts of the chunks to what the chunks before have; their sum to offsets[g].
__global__ void __launch_bounds__(group_threads) prefix_chunks_kernel(GroupTables tables, int chunks) {
    const std::int64_t g = static_cast<std::int64_t>(blockIdx.x) * group_threads + threadIdx.x;
    if (g >= tables.groups) return;
    int total = 0;
    for (std::int64_t c = 0; c < chunks; c++) {
        std::int32_t& count = tables.counts[c * tables.groups + g];
        const int own = count;
        count = total;
        total += own;
    }
    tables.offsets[g] = total;
}

__global__ void __launch_bounds__(scan_threads)
    scan_groups_kernel(GroupTables tables, TokenGroups stack, bool has_stack) {
    scan_groups<scan_threads>(tables.offsets, static_cast<int>(tables.groups), tables.offsets, nullptr);
    __syncthreads();
    if (has_stack) cut_tiles<scan_threads>(stack);
}

__global__ void __launch_bounds__(group_threads) cut_tiles_kernel(TokenGroups stack) {
    cut_tiles<group_threads>(stack);
}

// Dynamic shared memory: [groups] counters, if is_shared.
__global__ void __launch_bounds__(group_threads)
    place_slots_kernel(SlotIds ids, GroupTables tables, int chunk, bool is_shared) {
    const std::int64_t all = tables.tokens * tables.slots, first = static_cast<std::int64_t>(blockIdx.x) * chunk;
    const auto last = static_cast<int>(min(all, first + chunk));
    std::int32_t* const counts = tables.counts + blockIdx.x * tables.groups;
    std::int32_t* const counters = is_shared ? reinterpret_cast<std::int32_t*>(ptx::dynamic_shared()) : counts;
    for (std::int64_t g = threadIdx.x; g < tables.groups; g += group_threads)
        counters[g] = counts[g] + tables.offsets[g];
    __syncthreads();
    if (threadIdx.x < 32) place_slots(ids, tables, static_cast<int>(first), last, counters);
}

}  // namespace
}  // namespace fastffn::cuda
