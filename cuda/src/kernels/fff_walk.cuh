// Walks down a tree in f32.
//
//   walk         a warp per walker, a row per level: bytes are what the path has, latency is a row's per level
//   block walk   a block per walker, the 15 nodes of four levels at a time, a warp each: 15 rows instead of 4, in the latency of one
//
// Estimates for depth 11, 768 columns of bf16, one token (no measurement): 12 rows one after another at about 0.7 µs each from
// memory are 8 µs; three rounds of 15 rows 2 to 3 µs, for 69 KB instead of 18. That is 1.6 µs of an H200's L2 for 128 tokens, so the
// block walk serves up to some hundred walkers; then bytes count.
#pragma once

#include "kernels/fff_rows.cuh"
#include "kernels/fff_sum.cuh"
#include "ptx/memory.cuh"
#include "ptx/shared.cuh"

namespace fastffn::cuda {
namespace {

constexpr int walk_warps = 8;

// Three blocks on a multiprocessor: left to itself ptxas takes 64 registers and spills.
// x_floats: a warp's part of shared memory. A row of x that is longer comes in pieces, again for every level. run: neighbouring
// walkers per warp of a block, as in fff_sum.cuh.
template <int format>
__global__ void __launch_bounds__(walk_warps * 32, 3) walk_kernel(WalkArgs args, int x_floats, int run) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const int warps = static_cast<int>(blockDim.x) / 32;
    float* const x = reinterpret_cast<float*>(ptx::dynamic_shared()) + static_cast<std::int64_t>(warp) * x_floats;
    constexpr std::int64_t column_bytes = 16 / row_columns<format>;
    const TreeArgs& tree = args.tree;
    const std::int64_t columns = tree.node_bytes / column_bytes;
    const bool whole = columns <= x_floats;
    const std::int64_t first_walker = static_cast<std::int64_t>(blockIdx.x) * warps * run;
    for (int step = 0; step < run; step++) {
        const std::int64_t i = first_walker + step * warps + warp;
        if (i >= args.walkers.count) break;  // of the whole warp
        const std::int64_t walker = args.order ? args.order[i] : i;
        const std::int64_t which = walker / args.walkers.tokens, token = walker % args.walkers.tokens;
        const bool is_forced = args.walkers.forced != nullptr;
        const std::int64_t forced = is_forced ? forced_leaf(args.walkers, tree.trees, tree.depth, walker) : -1;
        std::int32_t node = args.first_level ? args.walkers.node[walker] : 1;
        if (whole) {
            __syncwarp();  // everyone has done with the walker before
            stage_x<format>(args, token, 0, static_cast<int>(columns), x, lane, 32);
            __syncwarp();
        }
        for (int level = args.first_level; level < args.end_level; level++) {
            const std::int64_t place = node_place(tree, which, node);
            const unsigned char* const row = tree.w_node + place * tree.node_bytes;
            const float4 head = __ldg(tree.heads + place);
            LaneSums sums;
            if (whole) {
                add_dot<format>(row, tree.node_bytes, x, lane, sums);
            } else {
                for (std::int64_t first = 0; first < columns; first += x_floats) {
                    const int count = static_cast<int>(min(columns - first, static_cast<std::int64_t>(x_floats)));
                    __syncwarp();
                    stage_x<format>(args, token, first, count, x, lane, 32);
                    __syncwarp();
                    add_dot<format>(row + first * column_bytes, count * column_bytes, x, lane, sums);
                }
            }
            const float z = fmaf(warp_sum(sums.total()), head.x, head.y);
            if (lane == 0) args.walkers.z[walker * tree.levels + level] = z;
            if (level == tree.depth) break;  // the last of the all-node form decides nothing
            node = 2 * node + (goes_right(tree, is_forced, forced, level, z, head.z) ? 1 : 0);
        }
        if (lane != 0) continue;
        args.walkers.node[walker] = node;
        count_walker(args.counted, which, node, args.end_level, walker);
    }
}

constexpr int block_walk_warps = 16, block_levels = 4;

template <int format>
__global__ void __launch_bounds__(block_walk_warps * 32) block_walk_kernel(BlockWalkArgs both) {
    constexpr int threads = block_walk_warps * 32;
    const WalkArgs& args = both.walk;
    const TreeArgs& tree = args.tree;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    float* const x = reinterpret_cast<float*>(ptx::dynamic_shared());
    __shared__ float z_of[2][16];  // of the 15 nodes; a round writes the half that the one before did not
    __shared__ int right_of[2][16];
    __shared__ float z_path[32];  // of the nodes on the path
    const std::int64_t walker = blockIdx.x;
    const std::int64_t which = walker / args.walkers.tokens, token = walker % args.walkers.tokens;
    const bool is_forced = args.walkers.forced != nullptr;
    const std::int64_t forced = is_forced ? forced_leaf(args.walkers, tree.trees, tree.depth, walker) : -1;
    // The rows of the first round come to L2 while x comes here.
    const int below = 31 - __clz(warp + 1);  // warp w has node w of a block of 15, counted as a heap from 0
    if (warp < 15 && below < tree.levels) {
        const unsigned char* const row = tree.w_node + node_place(tree, which, warp + 1) * tree.node_bytes;
        for (std::int64_t at = lane * 128; at < tree.node_bytes; at += 32 * 128) ptx::prefetch_l2(row + at);
    }
    constexpr std::int64_t column_bytes = 16 / row_columns<format>;
    stage_x<format>(args, token, 0, static_cast<int>(tree.node_bytes / column_bytes), x, thread, threads);
    __syncthreads();

    std::int32_t node = 1;
    for (int level = 0, round = 0; level < tree.levels; level += block_levels, round ^= 1) {
        if (warp < 15 && level + below < tree.levels) {
            const std::int32_t own = (node << below) + warp + 1 - (1 << below);
            const std::int64_t place = node_place(tree, which, own);
            const float4 head = __ldg(tree.heads + place);
            LaneSums sums;
            add_dot<format>(tree.w_node + place * tree.node_bytes, tree.node_bytes, x, lane, sums);
            const float z = fmaf(warp_sum(sums.total()), head.x, head.y);
            if (lane == 0) {
                z_of[round][warp] = z;
                right_of[round][warp] =
                    level + below < tree.depth && goes_right(tree, is_forced, forced, level + below, z, head.z);
            }
        }
        __syncthreads();
        // Every thread walks them for itself.
        int local = 0;
        for (int t = level; t < min(level + block_levels, tree.levels); t++) {
            if (thread == 0) z_path[t] = z_of[round][local];
            if (both.sums) {  // and the rows to sum while the next rounds walk
                const unsigned char* const row = tree.w_out + node_place(tree, which, node) * tree.out_bytes;
                for (std::int64_t at = thread * 128; at < tree.out_bytes; at += threads * 128)
                    ptx::prefetch_l2(row + at);
            }
            if (t == tree.depth) break;
            const int right = right_of[round][local];
            node = 2 * node + right;
            local = 2 * local + 1 + right;
        }
    }
    if (thread == 0) {
        args.walkers.node[walker] = node;
        count_walker(args.counted, which, node, tree.depth, walker);
    }
    __syncthreads();
    if (thread < tree.levels) args.walkers.z[walker * tree.levels + thread] = z_path[thread];
    if (both.sums) sum_of_block(both.sum, token, node, z_path, thread, threads);
}

}  // namespace
}  // namespace fastffn::cuda
