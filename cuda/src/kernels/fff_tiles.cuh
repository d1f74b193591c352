// Tensor-core levels: 64 walkers that stand on one node meet the 63 nodes of six levels below it, as one product of 64 × 64; then
// each walks down the z that lie in shared memory. Nine in ten products are never used and cost nothing: tensor cores are that
// much faster than reading a path's rows one by one.
//
//   block     4 warps, each 32 walkers × 32 nodes: 2 × 4 mma tiles, 32 sums a lane
//   stages    4 of 64 bytes of depth, 8 KiB each, three under way; in the end the same memory holds the z, a row per walker
//   shared    16-byte chunk c of row r lies at c ^ (r / 2 % 4): the eight rows of an ldmatrix then cover all banks once
//
// For rows and x of the same 16-bit type only: their products are exact in f32, so z differs from a walk's by the order of f32
// additions (and mma cuts sums off where fma rounds): at most (d_model + 8) · 2^-23 · Σ |x · w|. A decision nearer than that to its
// threshold may fall the other way.
//
// Estimate for 768 columns of bf16, depth 11, 16384 tokens on an H200: per six levels 1.6 GFLOP and 25 MB of x + 256 to 320 tiles
// times 96 KB of rows from L2: 8 to 10 µs. Not measured.
#pragma once

#include "kernels/fff_rows.cuh"
#include "kernels/products.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/shared.cuh"

namespace fastffn::cuda {
namespace {

struct TileWalk {
    static constexpr int threads = 128, stage_depth = 64, stages = 4;
    static constexpr int half_bytes = 64 * stage_depth, stage_bytes = 2 * half_bytes;
    static constexpr int z_stride = 65;  // odd: walkers that read one node each meet different banks
    static constexpr int shared_bytes = stages * stage_bytes;
    static_assert(64 * z_stride * 4 <= shared_bytes, "z in place of the stages");
};

__device__ __forceinline__ int tile_place(int row, int chunk) { return row * 64 + ((chunk ^ (row / 2 % 4)) * 16); }

template <class P>
__global__ void __launch_bounds__(TileWalk::threads, 4) tile_walk_kernel(TileWalkArgs args) {
    using T = TileWalk;
    unsigned char* const shared = ptx::dynamic_shared();
    const TreeArgs& tree = args.tree;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;

    // Whose tile this is: `count` walkers from position `first` on, which stand on the node `root` of one tree.
    std::int64_t group, first, end;
    if (args.tiles) {
        if (blockIdx.x >= static_cast<unsigned>(*args.tile_count)) return;
        group = args.tiles[2 * static_cast<std::int64_t>(blockIdx.x)];
        first = args.tiles[2 * static_cast<std::int64_t>(blockIdx.x) + 1];
        end = args.offsets[group + 1];
    } else {
        const std::int64_t per_tree = (args.walkers.tokens + tile_walkers - 1) / tile_walkers;
        group = blockIdx.x / per_tree;
        first = group * args.walkers.tokens + blockIdx.x % per_tree * tile_walkers;
        end = (group + 1) * args.walkers.tokens;
    }
    const int count = static_cast<int>(min(end - first, static_cast<std::int64_t>(tile_walkers)));
    const std::int64_t which = group >> args.first_level;
    const auto root =
        static_cast<std::int32_t>(group - (which << args.first_level) + (std::int64_t{1} << args.first_level));
    const int levels = args.end_level - args.first_level, nodes = (1 << levels) - 1;
    const auto walker_at = [&](int i) {
        return args.order ? static_cast<std::int64_t>(args.order[first + i]) : first + i;
    };

    // Each thread copies 16 bytes of two rows of x and of two nodes per stage.
    const int copy_row = thread / 4, copy_chunk = thread % 4;
    const unsigned char* sources[4];
    bool exists[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = copy_row + i % 2 * 32;
        if (i < 2) {
            exists[i] = row < count;
            sources[i] = static_cast<const unsigned char*>(args.x) +
                         (exists[i] ? walker_at(row) % args.walkers.tokens : 0) * args.x_stride;
        } else {
            // Node `row` of the subtree, counted as a heap from 0.
            const int below = 31 - __clz(row + 1);
            exists[i] = row < nodes;
            const std::int32_t node = exists[i] ? (root << below) + row + 1 - (1 << below) : root;
            sources[i] = tree.w_node + node_place(tree, which, node) * tree.node_bytes;
        }
    }
    const int steps = static_cast<int>((tree.node_bytes + T::stage_depth - 1) / T::stage_depth);
    const auto copy_stage = [&](int step) {
        const std::int64_t k = static_cast<std::int64_t>(step) * T::stage_depth + copy_chunk * 16;
        const bool inside = k < tree.node_bytes;
        unsigned char* const stage = shared + step % T::stages * T::stage_bytes;
#pragma unroll
        for (int i = 0; i < 4; i++)
            ptx::cp_async_16(stage + i / 2 * T::half_bytes + tile_place(copy_row + i % 2 * 32, copy_chunk),
                             sources[i] + (inside ? k : 0), inside && exists[i] ? 16 : 0);
    };

    float acc[2][4][4] = {};
    const int warp_walkers = warp / 2 * 32, warp_nodes = warp % 2 * 32;
#pragma unroll
    for (int step = 0; step < T::stages - 1; step++) {
        if (step < steps) copy_stage(step);
        ptx::cp_async_commit();
    }
    for (int step = 0; step < steps; step++) {
        ptx::cp_async_wait<T::stages - 2>();
        __syncthreads();  // everyone's copies of this stage have come, and everyone has done with the stage that is filled next
        if (step + T::stages - 1 < steps) copy_stage(step + T::stages - 1);
        ptx::cp_async_commit();
        const unsigned char* const x_tile = shared + step % T::stages * T::stage_bytes;
        const unsigned char* const w_tile = x_tile + T::half_bytes;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            unsigned a[2][4], b[2][4];
#pragma unroll
            for (int i = 0; i < 2; i++)
                ptx::ldmatrix(a[i], x_tile + tile_place(warp_walkers + i * 16 + lane % 16, half * 2 + lane / 16));
#pragma unroll
            for (int j = 0; j < 2; j++)
                // Two tiles of 8 nodes at a time: lanes 0-15 address the first, 16-31 the second.
                ptx::ldmatrix(
                    b[j], w_tile + tile_place(warp_nodes + j * 16 + lane % 8 + lane / 16 * 8, half * 2 + lane / 8 % 2));
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const unsigned pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
                    P::step(acc[i][j], a[i], pair);
                }
        }
    }
    ptx::cp_async_wait<0>();
    __syncthreads();  // the stages have been read

    float* const dots = reinterpret_cast<float*>(shared);
    const int g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                dots[(warp_walkers + i * 16 + g + c / 2 * 8) * T::z_stride + warp_nodes + j * 8 + 2 * t + c % 2] =
                    acc[i][j][c];
    __syncthreads();
    const unsigned active = __ballot_sync(0xffffffffu, thread < count);
    if (thread >= count) return;
    const std::int64_t walker = walker_at(thread);
    const bool is_forced = args.walkers.forced != nullptr;
    const std::int64_t forced = is_forced ? forced_leaf(args.walkers, tree.trees, tree.depth, walker) : -1;
    std::int32_t node = root;
    for (int level = args.first_level, local = 0; level < args.end_level; level++) {
        const float4 head = __ldg(tree.heads + node_place(tree, which, node));
        const float z = fmaf(dots[thread * T::z_stride + local], head.x, head.y);
        args.walkers.z[walker * tree.levels + level] = z;
        if (level == tree.depth) break;  // the last of the all-node form decides nothing
        const int right = goes_right(tree, is_forced, forced, level, z, head.z) ? 1 : 0;
        node = 2 * node + right;
        local = 2 * local + 1 + right;
    }
    args.walkers.node[walker] = node;
    count_walkers(args.counted, which, node, args.end_level, walker, active);
}

}  // namespace
}  // namespace fastffn::cuda
