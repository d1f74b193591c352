// A call of fff() with everything checked.
#pragma once

#include "fastffn/fff.hpp"
#include "layers/engine.hpp"
#include "layers/fff_engine.hpp"
#include "layers/grouped.hpp"

namespace fastffn {

// One call with everything checked.
struct FffCall {
    TreeCall tree;
    GroupStack leaves;  // leaf form
    GroupedLayer grouped;
    DenseLayer master;
    bool on_device = false;  // set before the checks: weights and arrays lie on a CUDA device
    bool has_leaves = false, has_master = false;
    float tree_share = 1, master_share = 1;
    std::int64_t d_out = 0;
    RowsView x, y;
};

// What fff() and fff_route() have in common.
Status open_route(const char* operation, const PackedView& packed, const TensorView& x, FffPlan plan, TreeCall* call,
                  RowsView* x_rows, bool on_device = false);

// Whether the results of fff_route have the shapes that x and the tree ask for, and memory of their own.
Status check_route_results(const TensorView& x, const PackedView& tree, const TreeCall& call, const TensorView& leaf,
                           const TensorView* margin, const TensorView* z);

// Every check of a call. y == nullptr: of a query, which has none.
Status open_fff(const TensorView& x, const FffWeights& weights, const TensorView* y, FffCall* call);

// Checks the ids of forced leaves, and writes them where `ids` is given, numbered across the stack of trees if asked.
Status read_forced(const TensorView& leaf, const PackedTree& tree, bool of_stack, std::int32_t* ids);

}  // namespace fastffn
