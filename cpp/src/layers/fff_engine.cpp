// Which plan a call of trees takes.
#include "layers/fff_engine.hpp"

#include "layers/fff_tiles.hpp"

namespace fastffn {

namespace {

// Waking a second thread costs a few microseconds: below this many bytes of rows one thread is faster.
constexpr std::int64_t serial_bytes = 192 << 10;
// From this many tokens on they are sorted.
constexpr std::int64_t grouped_tokens = 64;

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
    if (wanted == FffPlan::automatic) plan.plan = x.rows >= grouped_tokens ? FffPlan::grouped : FffPlan::per_token;
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
