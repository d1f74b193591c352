// Which plan a call of trees takes.
#include "layers/fff_engine.hpp"

#include "layers/fff_tiles.hpp"

namespace fastffn {

namespace {

// Waking a second thread costs a few microseconds: below this many bytes of rows one thread is faster.
constexpr std::int64_t serial_bytes = 192 << 10;
// From this many tokens per thread on they are sorted. Microseconds per token, per token / grouped, one thread (Zen 4):
//
//     tokens                     4           16           64          512         2048
//     1×11  768→768 f32      1.52/1.47    1.55/1.39    1.95/2.00    2.95/2.29    3.59/2.58
//     1×11  768→768 bf16     1.23/1.27    1.08/1.04    1.07/0.99    1.11/0.98    2.17/2.10
//     1×6   768→768 f32      0.92/0.88    0.76/0.62    0.71/0.55    0.70/0.54    0.96/0.94
//     1×13  256→256 f32      0.87/0.98    0.72/0.74    0.75/0.75    0.83/0.65    1.52/1.18
//     1×11   64→64  f32      0.48/0.58    0.31/0.31    0.27/0.21    0.25/0.18    0.24/0.19
//     16×5  256→256 f32      4.28/4.12    4.16/3.65    4.19/3.48    4.00/3.30    4.23/3.63
constexpr std::int64_t grouped_tokens_per_thread = 16;

}  // namespace

TreePlan plan_tree_call(const TreeCall& call, const RowsView& x, DType y_dtype, int threads, FffPlan wanted) {
    const PackedTree& tree = call.tree;
    TreePlan plan;
    plan.tokens = x.rows;
    plan.copy_x = x.dtype != DType::f32 || x.cols % 16 != 0;
    plan.z_stride = round_up(tree.levels > 0 ? tree.levels : 1, 16);
    const std::int64_t work = least(x.rows, 1 << 20) * tree.header.trees * tree.levels * tree.header.record_bytes;
    plan.threads = work < serial_bytes ? 1 : threads;
    plan.plan = wanted;
    if (wanted == FffPlan::automatic)
        plan.plan = x.rows >= grouped_tokens_per_thread * plan.threads ? FffPlan::grouped : FffPlan::per_token;
    if (plan.plan == FffPlan::grouped) plan_grouped_walk(call, x, y_dtype, &plan);
    else plan_per_token(call, x, &plan);
    return plan;
}

void run_tree_call(const TreeCall& call, const TreePlan& plan, const RowsView& x, const RowsView& y,
                   std::byte* workspace) noexcept {
    if (plan.plan == FffPlan::grouped) run_grouped_walk(call, plan, x, y, workspace);
    else run_per_token(call, plan, x, y, workspace);
}

}  // namespace fastffn
