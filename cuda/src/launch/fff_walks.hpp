// Walks of a whole call: which kernels take its walkers down, and when they are sorted.
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
