// The loops of a tree call: which tokens walk together, where z and leaves are kept, and the weighted sum of the
// all-node form.
//
//   per token   [every token of a tile walks down every tree] → [coefficients → sum], a token after another
//   grouped     tree by tree: [tiles of tokens walk the upper levels, sharing rows] → counting sort by subtree → [chunks of
//               tokens of neighbouring subtrees walk the rest → coefficients → sum, by blocks of columns]
#pragma once

#include "core/elementwise.hpp"
#include "layers/rows.hpp"
#include "routes/tree/walk.hpp"

namespace fastffn {

struct TreeCall {
    PackedTree tree;
    const TreeKernels* kernels = nullptr;
    const ElementwiseKernels* elementwise = nullptr;
    Activation activation{};
    bool sums = false;                     // all-node form: write y. Otherwise only the route is wanted.
    const std::int32_t* forced = nullptr;  // [tokens, trees] leaves
    // Results of a route, each [tokens, trees, …] contiguous, or nullptr.
    std::int32_t* leaf = nullptr;
    bool leaf_of_stack = false;  // leaf + tree · leaves instead of leaf
    float* margin = nullptr;
    float* z = nullptr;
};

// Sizes of one call, all derived from shapes and threads; offsets into the workspace in bytes.
struct TreePlan {
    std::int64_t tokens = 0;
    int threads = 1;
    FffPlan plan = FffPlan::per_token;
    bool copy_x = false;            // x is not f32 in whole cache lines of 16: rows are copied
    std::int64_t z_stride = 0;      // floats per token and tree
    std::int64_t span = 0;          // tokens that are in flight at once: all, or a part of very many
    std::int64_t tile = 0;          // tokens of a task
    std::int64_t sort_level = 0;    // grouped: the level at which tokens are sorted; levels: never
    bool stream = false;            // y is large: written past the caches
    std::int64_t column_tasks = 1;  // per token: tasks that share a token's sum
    std::int64_t z = 0, node = 0, x_copy = 0, order = 0, chunks = 0, counts = 0;  // offsets
    std::int64_t sums = -1;                       // f32 rows of y, where several trees add to one in 16 bits
    std::int64_t scratch = 0, scratch_bytes = 0;  // per worker
    std::int64_t workspace_bytes = 0;

    // The next so many bytes of the workspace, from a cache line on.
    std::int64_t take(std::int64_t bytes) {
        const std::int64_t at = workspace_bytes;
        workspace_bytes += round_up(bytes, 64);
        return at;
    }
};

// y_dtype: of the sums; d_model and x's layout decide whether rows are copied.
TreePlan plan_tree_call(const TreeCall& call, const RowsView& x, DType y_dtype, int threads, FffPlan wanted);

// y is used only where call.sums.
void run_tree_call(const TreeCall& call, const TreePlan& plan, const RowsView& x, const RowsView& y,
                   std::byte* workspace) noexcept;

}  // namespace fastffn
