// fff and fff_route: every check, then the engine of trees, the grouped engine for leaves, the dense one for a master.
#include "fastffn/fff.hpp"

#include "core/convert.hpp"
#include "core/parallel.hpp"
#include "layers/fff_open.hpp"

namespace fastffn {

namespace {

// Tokens that go through the tree and then through the master, in f32, at a time.
constexpr std::int64_t master_span = 4096;

int resolve_threads(int threads) { return usable_threads(threads > 0 ? threads : default_threads()); }

// Where the parts of a call keep their memory.
struct FffPlanned {
    TreePlan tree;
    GroupedPlan grouped;
    DensePlan master;
    std::int64_t span = 0;  // tokens that go through all parts before the next ones
    std::int64_t ids = -1;  // of leaves: forced, or as routed
    std::int64_t tree_rows = -1, master_rows = -1;
    std::int64_t shared = 0;  // the parts run one after another, on the same memory
    std::int64_t workspace_bytes = 0;
};

RowsView slice(const RowsView& rows, std::int64_t first, std::int64_t count) {
    RowsView part = rows;
    if (count == rows.rows) return part;
    part.data += first * rows.row_stride();  // of one leading dimension: see plan_fff
    part.rows = part.shape[0] = count;
    return part;
}

RowsView f32_rows(std::byte* data, std::int64_t rows, std::int64_t cols) {
    RowsView view;
    view.data = data;
    view.rows = view.shape[0] = rows;
    view.cols = cols;
    view.dims = 1;
    view.strides[0] = round_up(cols, 16) * 4;
    return view;
}

FffPlanned plan_fff(const FffCall& call, const FffWeights& weights, DType y_dtype, int threads) {
    FffPlanned plan;
    const std::int64_t trees = call.tree.tree.header.trees;
    plan.span = call.x.rows;
    const bool sliced = call.x.dims == 1 && (call.y.dims == 1 || call.y.dims == 0);
    if (call.has_master && sliced && plan.span > master_span) plan.span = master_span;
    RowsView x = call.x;
    x.rows = plan.span;
    const bool routes = call.tree.sums || !weights.leaf;
    if (routes) plan.tree = plan_tree_call(call.tree, x, call.has_master ? DType::f32 : y_dtype, threads, weights.plan);
    if (call.has_leaves) plan.grouped = plan_grouped(call.grouped, plan.span, trees, threads);
    if (call.has_master) plan.master = plan_dense(call.master, plan.span, threads);
    std::int64_t offset = 0;
    auto take = [&offset](std::int64_t bytes) {
        const std::int64_t at = offset;
        offset += round_up(bytes, 64);
        return at;
    };
    if (weights.leaf) plan.ids = take(call.x.rows * trees * 4);
    else if (call.has_leaves) plan.ids = take(plan.span * trees * 4);
    if (call.has_master) {
        plan.tree_rows = take(plan.span * round_up(call.d_out, 16) * 4);
        plan.master_rows = take(plan.span * round_up(call.d_out, 16) * 4);
    }
    std::int64_t most = plan.tree.workspace_bytes;
    if (plan.grouped.workspace_bytes > most) most = plan.grouped.workspace_bytes;
    if (plan.master.workspace_bytes > most) most = plan.master.workspace_bytes;
    plan.shared = take(most);
    plan.workspace_bytes = offset;
    return plan;
}

// y = tree_share · tree + master_share · master
void mix_rows(const FffCall& call, const FffPlanned& plan, const std::byte* workspace, const RowsView& y) {
    const std::int64_t stride = round_up(call.d_out, 16), bytes = element_bytes(y.dtype);
    parallel_for(plan.master.threads, divide_up(y.rows, 64), [&](std::int64_t task, int) {
        const std::int64_t end = task * 64 + 64 < y.rows ? task * 64 + 64 : y.rows;
        for (std::int64_t i = task * 64; i < end; ++i) {
            const auto* tree = reinterpret_cast<const float*>(workspace + plan.tree_rows) + i * stride;
            const auto* master = reinterpret_cast<const float*>(workspace + plan.master_rows) + i * stride;
            std::int64_t run = 0;
            std::byte* dst = y.row(i, 1, &run);
            for (std::int64_t c = 0; c < call.d_out; ++c)
                store_f32(dst + c * bytes, y.dtype, call.tree_share * tree[c] + call.master_share * master[c]);
        }
    });
}

void run_span(FffCall& call, FffPlanned& plan, const FffWeights& weights, std::int64_t first, std::int64_t count,
              int threads, std::byte* workspace) {
    const std::int64_t trees = call.tree.tree.header.trees;
    const RowsView x = slice(call.x, first, count), y = slice(call.y, first, count);
    const RowsView tree_rows = call.has_master ? f32_rows(workspace + plan.tree_rows, count, call.d_out) : y;
    if (count != plan.span) {  // the last one is shorter
        if (plan.tree.tokens) plan.tree = plan_tree_call(call.tree, x, tree_rows.dtype, threads, plan.tree.plan);
        if (call.has_leaves) plan.grouped = plan_grouped(call.grouped, count, trees, threads);
        plan.master = plan_dense(call.master, count, threads);
    }
    auto* ids = reinterpret_cast<std::int32_t*>(workspace + plan.ids);
    if (weights.leaf) ids += first * trees;
    std::byte* shared = workspace + plan.shared;
    if (call.has_leaves) {
        if (!weights.leaf) {
            call.tree.leaf = ids;
            run_tree_call(call.tree, plan.tree, x, tree_rows, shared);
        }
        GroupedRouting routing;
        routing.ids = ids;
        routing.tokens = count;
        routing.picks = trees;
        run_grouped(call.grouped, plan.grouped, routing, x, tree_rows, shared);
    } else {
        if (weights.leaf) call.tree.forced = ids;
        run_tree_call(call.tree, plan.tree, x, tree_rows, shared);
    }
    if (!call.has_master) return;
    run_dense(call.master, plan.master, x, f32_rows(workspace + plan.master_rows, count, call.d_out), shared);
    mix_rows(call, plan, workspace, y);
}

}  // namespace

Status fff(Context& context, const TensorView& x, const FffWeights& weights, const TensorView& y) {
    FffCall call;
    if (Status status = open_fff(x, weights, &y, &call); !status.ok()) return status;
    if (call.x.rows == 0) return {};
    const int threads = resolve_threads(context.threads());
    if (weights.leaf)
        if (Status status = read_forced(*weights.leaf, call.tree.tree, false, nullptr); !status.ok()) return status;
    FffPlanned plan = plan_fff(call, weights, y.dtype, threads);
    std::byte* workspace = context.workspace(plan.workspace_bytes);
    if (!workspace)
        return {StatusCode::out_of_memory,
                "fff: no memory for a workspace of " + std::to_string(plan.workspace_bytes) + " bytes"};
    if (weights.leaf)
        (void)read_forced(*weights.leaf, call.tree.tree, call.has_leaves,
                          reinterpret_cast<std::int32_t*>(workspace + plan.ids));
    context.set_last_kernel(call.tree.kernels->name);
    for (std::int64_t first = 0; first < call.x.rows; first += plan.span) {
        const std::int64_t left = call.x.rows - first;
        run_span(call, plan, weights, first, left < plan.span ? left : plan.span, threads, workspace);
    }
    return {};
}

Status fff_workspace(const TensorView& x, const FffWeights& weights, int threads, std::int64_t* bytes) {
    FffCall call;
    if (Status status = open_fff(x, weights, nullptr, &call); !status.ok()) return status;
    *bytes = call.x.rows ? plan_fff(call, weights, x.dtype, resolve_threads(threads)).workspace_bytes : 0;
    return {};
}

Status fff_route(Context& context, const TensorView& x, const PackedView& tree, const TensorView& leaf,
                 const TensorView* margin, const TensorView* z, FffPlan plan) {
    TreeCall call;
    RowsView rows;
    if (Status status = open_route("fff_route", tree, x, plan, &call, &rows); !status.ok()) return status;
    if (Status status = check_route_results(x, tree, call, leaf, margin, z); !status.ok()) return status;
    if (rows.rows == 0) return {};
    call.leaf = static_cast<std::int32_t*>(leaf.data);
    call.margin = margin ? static_cast<float*>(margin->data) : nullptr;
    call.z = z ? static_cast<float*>(z->data) : nullptr;
    const TreePlan planned = plan_tree_call(call, rows, DType::f32, resolve_threads(context.threads()), plan);
    std::byte* workspace = context.workspace(planned.workspace_bytes);
    if (!workspace)
        return {StatusCode::out_of_memory,
                "fff_route: no memory for a workspace of " + std::to_string(planned.workspace_bytes) + " bytes"};
    context.set_last_kernel(call.kernels->name);
    run_tree_call(call, planned, rows, rows, workspace);
    return {};
}

}  // namespace fastffn
