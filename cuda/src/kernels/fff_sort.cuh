// Walkers sorted by the node on which they stand: counts and ranks come from the walk before, one block turns counts into offsets,
// then every walker writes itself to its place and the first of each tile its tile. The order within a node is that of atomics and
// differs from run to run; no result depends on it, because every walker is computed by itself.
#pragma once

#include <cuda_runtime.h>

#include "kernels/fff_rows.cuh"

namespace fastffn::cuda {
namespace {

constexpr int scan_threads = 512, sort_threads = 256;

// The group of a walker, or -1 for one that a leaf out of range was forced on.
__device__ __forceinline__ std::int64_t group_of(const SortArgs& args, std::int64_t walker) {
    const std::int32_t node = args.walkers.node[walker];
    if (node == 0) return -1;
    return (walker / args.walkers.tokens << args.level) + node - (std::int64_t{1} << args.level);
}

__device__ __forceinline__ void place_walker(const SortArgs& args, std::int64_t walker, std::int32_t position) {
    if (args.order && position >= 0) args.order[position] = static_cast<std::int32_t>(walker);
    if (args.rows && position >= 0) args.rows[position] = static_cast<std::int32_t>(walker % args.walkers.tokens);
    if (args.slots) args.slots[walker] = position;
}

// One block: offsets[g] and tile_first[g] are the walkers and the tiles of all groups before g.
__global__ void __launch_bounds__(scan_threads) scan_kernel(SortArgs args, std::int64_t groups) {
    constexpr int warps = scan_threads / 32;
    __shared__ int walkers_of[warps], tiles_of[warps];
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    int walkers_before = 0, tiles_before = 0;
    for (std::int64_t first = 0; first < groups; first += scan_threads) {
        const std::int64_t group = first + thread;
        const int own = group < groups ? args.counted.counts[group] : 0;
        const int own_tiles = (own + args.tile_walkers - 1) / args.tile_walkers;
        int walkers = own, tiles = own_tiles;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const int more = __shfl_up_sync(0xffffffffu, walkers, distance);
            const int more_tiles = __shfl_up_sync(0xffffffffu, tiles, distance);
            if (lane < distance) continue;
            walkers += more;
            tiles += more_tiles;
        }
        if (lane == 31) {
            walkers_of[warp] = walkers;
            tiles_of[warp] = tiles;
        }
        __syncthreads();
        int all_walkers = 0, all_tiles = 0;
        for (int w = 0; w < warps; w++) {
            if (w == warp) {
                walkers += all_walkers;
                tiles += all_tiles;
            }
            all_walkers += walkers_of[w];
            all_tiles += tiles_of[w];
        }
        if (group < groups) {
            args.offsets[group] = walkers_before + walkers - own;
            args.tile_first[group] = tiles_before + tiles - own_tiles;
        }
        walkers_before += all_walkers;
        tiles_before += all_tiles;
        __syncthreads();  // before the next groups' sums
    }
    if (thread != 0) return;
    args.offsets[groups] = walkers_before;
    *args.tile_count = tiles_before;
}

__global__ void __launch_bounds__(sort_threads) scatter_kernel(SortArgs args) {
    for (std::int64_t walker = static_cast<std::int64_t>(blockIdx.x) * sort_threads + threadIdx.x;
         walker < args.walkers.count; walker += static_cast<std::int64_t>(gridDim.x) * sort_threads) {
        const std::int64_t group = group_of(args, walker);
        if (group < 0) {
            place_walker(args, walker, -1);
            continue;
        }
        const std::int32_t rank = args.counted.ranks[walker], position = args.offsets[group] + rank;
        place_walker(args, walker, position);
        if (rank % args.tile_walkers != 0) continue;
        const std::int64_t tile = args.tile_first[group] + rank / args.tile_walkers;
        args.tiles[2 * tile] = static_cast<std::int32_t>(group);
        args.tiles[2 * tile + 1] = position;
    }
}

// Up to a block of walkers: each counts those before it.
__global__ void __launch_bounds__(small_sort_limit) small_sort_kernel(SortArgs args) {
    __shared__ std::int32_t groups[small_sort_limit], starts[small_sort_limit];
    const int walker = static_cast<int>(threadIdx.x), count = static_cast<int>(args.walkers.count);
    const auto group = static_cast<std::int32_t>(walker < count ? group_of(args, walker) : -1);
    groups[walker] = group;
    starts[walker] = -1;
    __syncthreads();
    int before = 0, rank = 0, size = 0;
    for (int other = 0; other < count; other++) {
        const std::int32_t theirs = groups[other];
        if (theirs < 0) continue;
        before += theirs < group;
        size += theirs == group;
        rank += theirs == group && other < walker;
    }
    const int position = before + rank;
    const bool is_start = group >= 0 && rank % args.tile_walkers == 0;
    if (is_start) starts[walker] = position;
    __syncthreads();
    int tile = 0, tiles = 0;
    for (int other = 0; other < count; other++) {
        tiles += starts[other] >= 0;
        tile += starts[other] >= 0 && starts[other] < position;
    }
    if (walker == 0) *args.tile_count = tiles;
    if (walker >= count) return;
    place_walker(args, walker, group < 0 ? -1 : position);
    if (!is_start) return;
    args.tiles[2 * tile] = group;
    args.tiles[2 * tile + 1] = position;
    if (rank == 0) args.offsets[group + 1] = position + size;
}

__global__ void __launch_bounds__(sort_threads) force_kernel(ForceArgs args) {
    for (std::int64_t walker = static_cast<std::int64_t>(blockIdx.x) * sort_threads + threadIdx.x;
         walker < args.walkers.count; walker += static_cast<std::int64_t>(gridDim.x) * sort_threads) {
        const std::int64_t leaf = forced_leaf(args.walkers, args.trees, args.depth, walker);
        const auto node = static_cast<std::int32_t>(leaf < 0 ? 0 : leaf + (std::int64_t{1} << args.depth));
        args.walkers.node[walker] = node;
        if (node) count_walker(args.counted, walker / args.walkers.tokens, node, args.depth, walker);
    }
}

}  // namespace
}  // namespace fastffn::cuda
