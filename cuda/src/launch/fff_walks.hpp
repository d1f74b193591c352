// Walks of a whole call: which kernels take its walkers down, and when they are sorted.
//
//   few tokens    [block walk: all levels, four at a time; of one tree the sum too] or [block walk] → [sum]
//   more          [walk: a warp per walker] → [sum]
//   thousands     [six levels: tiles on tensor cores, or walk] → [sort by node] → [six levels of each subtree] → … → [sum, in
//                 the order of the last sort]
//
// Depth 11, 768 → 768, bf16, 16384 tokens on an H200, estimated from bytes and instructions, not measured: two times six levels
// 2 · 9 µs, sort 5, sum 22 (12 rows of 1.5 KB a token from L1, 25 MB of y), launches 5: about 50 µs. A dense layer of 3072 has
// 155 GFLOP, 196 µs at 790 TFLOP/s; without a sort the paths' rows alone are 604 MB from L2, 110 µs.
#pragma once

#include "abi/fff.hpp"
#include "launch/fff_kernels.hpp"
#include "launch/pieces.hpp"

namespace fastffn::cuda {

// A call's launches in order: none after one that failed, and none where only workspace is counted.
struct Launches {
    cudaStream_t stream;
    bool on;
    cudaError_t status = cudaSuccess;
    template <class F>
    void run(F f) {
        if (on && status == cudaSuccess) status = f();
    }
    // For steps that count their workspace themselves.
    template <class F>
    void prepare(F f) {
        if (status == cudaSuccess) status = f();
    }
};

// Chosen by all tokens of the call, so that spans of them run alike.
struct WalkPlan {
    enum { block, each, grouped } how = each;
    bool by_tiles = false;         // grouped: on tensor cores
    std::int64_t most_groups = 0;  // grouped: walkers are sorted where there are no more nodes than this
    int leaf_tile = 0;             // leaf form: tokens of a tile of the leaves' products
    bool small_sort = false;       // leaf form
};
WalkPlan plan_walk(const DeviceTree& tree, const DeviceRows& x, std::int32_t plan);

TreeArgs tree_args(const DeviceTree& tree);

Walkers new_walkers(const TreeArgs& tree, std::int64_t tokens, Pieces& pieces);

// No node has more tiles than walkers, and each ends with at most one that is not full.
constexpr std::int64_t most_walk_tiles(std::int64_t walkers, std::int64_t groups, int tile) {
    const std::int64_t ragged = walkers / tile + (groups < walkers ? groups : walkers);
    return walkers < ragged ? walkers : ragged;
}

// Takes the tables of a sort by walkers, trees and level, `sort.order` or rows and slots among them.
void plan_sort(SortArgs& sort, bool is_small, bool takes_order, Pieces& pieces);
void clear_counts(const SortArgs& sort, Launches& launches);

// All levels. `last`: counted by leaf at the end, or {}. sum: of the all-node form, its order is set here; nullptr: none.
void walk_trees(const TreeArgs& tree, const Walkers& walkers, const DeviceRows& x, const WalkPlan& plan, Counted last,
                SumArgs* sum, Pieces& pieces, Launches& launches);

}  // namespace fastffn::cuda
