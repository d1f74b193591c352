// The steps of a call of trees, each a launch: walks, sorting walkers by node, sums of rows. fff.cu puts them together.
//
// A walker is one token in one tree; walker = tree · tokens + token. It keeps the z of the nodes it visited and the node where it
// stands, counted as heaps are, from 1: the children of n are 2n and 2n + 1.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "fastffn/activation.hpp"
#include "fastffn/dtype.hpp"

namespace fastffn::cuda {

// Trees in device memory.
struct TreeArgs {
    const float4* heads;  // scale, bias, threshold, out_scale
    const unsigned char *w_node, *w_out;
    std::int64_t node_bytes, out_bytes;  // of a row
    std::int64_t trees, nodes;           // nodes per tree
    std::int64_t d_model, d_out;
    int depth, levels;         // levels: nodes that a walker visits, depth or depth + 1
    int format, route_format;  // fastffn::Format
    bool ties_right;
};

// Neighbouring walkers, or tokens, of one warp: as many as leave every multiprocessor of a large device several blocks of 8 warps,
// up to 8, which makes 64 of a block.
constexpr int walk_run(std::int64_t walkers) {
    const std::int64_t run = walkers / 2048;
    return run < 1 ? 1 : run > 8 ? 8 : static_cast<int>(run);
}

struct Walkers {
    std::int64_t tokens, count;  // count = tokens · trees
    float* z;                    // [count, levels]
    std::int32_t* node;          // [count]
    // Leaves to go to, [tokens, trees] of i32 or i64; nullptr: by z. Nothing on the host reads them: one that is out of range makes
    // NaN of its token's row of y.
    const void* forced;
    bool forced_is_wide;
};

// Counts walkers by the node on which they stand after a walk: the first half of a sort. nullptr: no sort follows.
struct Counted {
    std::int32_t* counts;  // [trees << level], zero before
    std::int32_t* ranks;   // [walkers]: a walker's number within its node
};

struct WalkArgs {
    TreeArgs tree;
    Walkers walkers;
    const void* x;
    DType x_dtype;
    std::int64_t x_stride;  // elements
    int first_level, end_level;
    const std::int32_t* order;  // [walkers], or nullptr: in ascending order
    Counted counted;
};

// A warp per walker, a row per level. x in f32, whatever its type and the row's.
cudaError_t launch_walk(const WalkArgs& args, cudaStream_t stream);

// The weighted sum of the all-node form: y[token] = Σ_trees Σ_levels act(z) · w_out[node], in this order.
struct SumArgs {
    TreeArgs tree;
    Walkers walkers;
    Activation activation;
    void* y;
    DType y_dtype;
    std::int64_t y_stride;      // elements
    const std::int32_t* order;  // [tokens] of walkers of the first tree; nullptr: ascending
};
cudaError_t launch_sum(const SumArgs& args, cudaStream_t stream);

// A block per walker, four levels at a time: few tokens, where time is the latency of memory. Walks all levels; with sums of one
// tree the block goes on to its token's row of y, of which args.y says where it is. z and node are written all the same.
struct BlockWalkArgs {
    WalkArgs walk;
    SumArgs sum;
    bool sums;
};
// Whether x fits where that kernel keeps it.
bool fits_block_walk(const TreeArgs& tree);
cudaError_t launch_block_walk(const BlockWalkArgs& args, cudaStream_t stream);

// Tensor cores: tiles of 64 walkers that stand on one node meet all nodes of up to six levels below it.
constexpr int tile_levels = 6, tile_walkers = 64;
struct TileWalkArgs {
    TreeArgs tree;  // route_format f16 or bf16
    Walkers walkers;
    const void* x;          // rows of that type, padded with zeros to node_bytes, 16-byte aligned
    std::int64_t x_stride;  // bytes
    int first_level, end_level;
    // Walkers sorted by node, and their tiles (launch_sort); nullptr on the first level.
    const std::int32_t *order, *offsets, *tiles, *tile_count;
    std::int64_t max_tiles;
    Counted counted;
};
cudaError_t launch_tile_walk(const TileWalkArgs& args, cudaStream_t stream);

// The second half of a sort by node at a level, after a walk that counted: order or rows and slots, and tiles.
struct SortArgs {
    Walkers walkers;
    std::int64_t trees;
    int level;
    Counted counted;
    std::int32_t* offsets;     // [groups + 1], groups = trees << level
    std::int32_t* tile_first;  // [groups], scratch
    std::int32_t* tiles;       // [most tiles, 2]: group and first position
    std::int32_t* tile_count;  // [1]
    int tile_walkers;
    std::int32_t* order;  // [walkers], or nullptr
    // For leaves: the token at each position, and each walker's position (-1: none); or nullptr.
    std::int32_t *rows, *slots;
};
cudaError_t launch_sort(const SortArgs& args, cudaStream_t stream);
// Both halves in one block, for few walkers: no table over all groups is cleared or read. Of offsets only those behind groups that
// have walkers are written.
constexpr std::int64_t small_sort_limit = 256;
cudaError_t launch_small_sort(const SortArgs& args, cudaStream_t stream);

// Walkers to the leaf that is forced on them, and counts them.
struct ForceArgs {
    Walkers walkers;
    std::int64_t trees;
    int depth;
    Counted counted;
};
cudaError_t launch_force(const ForceArgs& args, cudaStream_t stream);

// y[token] = Σ_trees rows[slots[walker]]: what the leaves gave.
struct CombineArgs {
    const float* rows;
    std::int64_t row_stride;  // elements
    const std::int32_t* slots;
    std::int64_t tokens, trees, cols;
    void* y;
    DType y_dtype;
    std::int64_t y_stride;
};
cudaError_t launch_combine(const CombineArgs& args, cudaStream_t stream);

// y = tree_share · tree + master_share · master; f32 rows of `cols`.
struct MixArgs {
    const float *tree, *master;
    float tree_share, master_share;
    std::int64_t tokens, cols, row_stride;
    void* y;
    DType y_dtype;
    std::int64_t y_stride;
};
cudaError_t launch_mix(const MixArgs& args, cudaStream_t stream);

// Results of fff_route, [first token …, trees]: see abi/fff.hpp.
struct RouteResultArgs {
    TreeArgs tree;
    Walkers walkers;
    std::int32_t* leaf;
    float *margin, *z;
};
cudaError_t launch_route_results(const RouteResultArgs& args, cudaStream_t stream);

}  // namespace fastffn::cuda
