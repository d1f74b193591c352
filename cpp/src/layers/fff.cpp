// fff and fff_route: every check, then the engine of trees, the grouped engine for leaves, the dense one for a master.
#include "fastffn/fff.hpp"

#include <cmath>
#include <cstring>

#include "core/convert.hpp"
#include "core/cpu.hpp"
#include "core/parallel.hpp"
#include "layers/fff_engine.hpp"
#include "layers/ffn.hpp"
#include "layers/grouped.hpp"

namespace fastffn {

namespace {

// Tokens that go through the tree and then through the master, in f32, at a time.
constexpr std::int64_t master_span = 4096;

Status fail(const char* operation, const std::string& text) {
    return {StatusCode::invalid_argument, std::string(operation) + ": " + text};
}

std::string shape_of(const MatrixView& m, std::int64_t count) {
    return "(" + std::to_string(count) + ", " + std::to_string(m.out_features) + ", " + std::to_string(m.in_features) +
           ")";
}

std::string tree_text(const PackedTree& tree) {
    const TreeHeader& h = tree.header;
    return std::string("tree (") + (tree.all_nodes() ? "all-node form, " : "leaf form, ") + std::to_string(h.trees) +
           (h.trees == 1 ? " tree" : " trees") + ", depth " + std::to_string(h.depth) + ", d_model " +
           std::to_string(h.d_model) + (tree.all_nodes() ? ", d_out " + std::to_string(h.d_out) : "") + ")";
}

// One call with everything checked.
struct FffCall {
    TreeCall tree;
    GroupStack leaves;  // leaf form
    GroupedLayer grouped;
    DenseLayer master;
    bool has_leaves = false, has_master = false;
    float tree_share = 1, master_share = 1;
    std::int64_t d_out = 0;
    RowsView x, y;
};

int resolve_threads(int threads) { return usable_threads(threads > 0 ? threads : default_threads()); }

Status open_route(const char* operation, const PackedView& packed, const TensorView& x, FffPlan plan, TreeCall* call,
                  RowsView* x_rows) {
    if (Status status = check_isa(); !status.ok()) return status;
    if (Status status = check_threading(); !status.ok()) return status;
    if (static_cast<int>(plan) > static_cast<int>(FffPlan::grouped))
        return fail(operation, "plan number " + std::to_string(static_cast<int>(plan)) + " is not known");
    if (Status status = open_tree(packed, operation, &call->tree); !status.ok()) return status;
    if (Status status = view_rows(operation, "x", x, x_rows); !status.ok()) return status;
    if (x_rows->cols != call->tree.header.d_model)
        return fail(operation, "x has shape " + x.shape_string() + ", expected (..., " +
                                   std::to_string(call->tree.header.d_model) + ") from " + tree_text(call->tree));
    call->kernels = &tree_kernels(chosen_isa());
    call->elementwise = &elementwise_kernels(chosen_isa());
    return {};
}

Status check_y(const TensorView& x, const TensorView& y, const FffCall& call, RowsView* rows) {
    if (Status status = view_rows("fff", "out", y, rows); !status.ok()) return status;
    TensorView expected = x;
    expected.shape[x.ndim - 1] = call.d_out;
    bool same = y.ndim == x.ndim;
    for (int i = 0; same && i < y.ndim; ++i) same = y.shape[i] == expected.shape[i];
    if (!same)
        return fail("fff", "out has shape " + y.shape_string() + ", expected " + expected.shape_string() + " from x " +
                               x.shape_string() + " and " +
                               (call.has_leaves ? "w_down " + shape_of(call.leaves.down.packed.view(),
                                                                       call.leaves.down.packed.header.count)
                                                : tree_text(call.tree.tree)));
    if (rows_overlap(y))
        return fail("fff", "out has shape " + y.shape_string() + " and strides " + y.stride_string() +
                               ": its rows share memory");
    return {};
}

Status check_leaf_bias(const char* name, const TensorView* bias, const GroupedOperand& operand, const char* weight) {
    if (!bias) return {};
    const TreeHeader* none = nullptr;
    (void)none;
    const MatrixView matrix = operand.packed.view();
    const std::int64_t count = operand.packed.header.count;
    if (bias->dtype != DType::f32 && bias->dtype != DType::f16 && bias->dtype != DType::bf16)
        return fail("fff", std::string(name) + " has dtype " + dtype_name(bias->dtype) + ", expected f32, f16 or bf16");
    if (bias->ndim != 2 || bias->shape[0] != count || bias->shape[1] != matrix.out_features)
        return fail("fff", std::string(name) + " has shape " + bias->shape_string() + ", expected (" +
                               std::to_string(count) + ", " + std::to_string(matrix.out_features) + ") from " + weight +
                               " " + shape_of(matrix, count));
    for (int i = 0; i < 2; ++i)
        if (bias->shape[i] > 1 && bias->strides[i] < 0)
            return fail("fff", std::string(name) + " has a negative stride; copy it first");
    if (!bias->data) return fail("fff", std::string(name) + " has no data");
    return {};
}

bool given(const PackedView& packed) { return packed.data != nullptr || packed.bytes != 0; }

Status open_leaves(const FffWeights& weights, FffCall* call) {
    const PackedTree& tree = call->tree.tree;
    const bool up = given(weights.w_up), down = given(weights.w_down);
    if (tree.all_nodes()) {
        if (up || down || weights.b_up || weights.b_down)
            return fail("fff", std::string(up             ? "w_up"
                                           : down         ? "w_down"
                                           : weights.b_up ? "b_up"
                                                          : "b_down") +
                                   " is given, but the " + tree_text(tree) + " has its outputs at its nodes");
        call->d_out = tree.header.d_out;
        return {};
    }
    if (!up || !down)
        return fail("fff", std::string(up ? "w_down" : "w_up") + " is missing: the " + tree_text(tree) +
                               " has its outputs in leaves");
    call->has_leaves = true;
    GroupStack& stack = call->leaves;
    const std::int64_t leaves = tree.header.trees * tree.leaves();
    auto open = [&](const char* name, const PackedView& packed, const TensorView* bias, GroupedOperand* operand) {
        if (Status status = open_packed(packed, "fff", name, &operand->packed); !status.ok()) return status;
        operand->kernels = &format_kernels(operand->packed, chosen_isa());
        operand->bias = bias;
        const MatrixView matrix = operand->packed.view();
        const std::int64_t count = operand->packed.header.count;
        const bool is_up = operand == &stack.up;
        const std::int64_t in = is_up ? tree.header.d_model : stack.up.packed.header.out_features;
        if (count == leaves && matrix.in_features == in) return Status();
        const std::string first = is_up ? "d_ff" : std::to_string(matrix.out_features);
        return fail(
            "fff", std::string(name) + " has shape " + shape_of(matrix, count) + ", expected (" +
                       std::to_string(leaves) + ", " + first + ", " + std::to_string(in) + ") from " + tree_text(tree) +
                       (is_up ? "" : " and w_up " + shape_of(stack.up.packed.view(), stack.up.packed.header.count)));
    };
    if (Status status = open("w_up", weights.w_up, weights.b_up, &stack.up); !status.ok()) return status;
    if (Status status = open("w_down", weights.w_down, weights.b_down, &stack.down); !status.ok()) return status;
    if (Status status = check_leaf_bias("b_up", weights.b_up, stack.up, "w_up"); !status.ok()) return status;
    if (Status status = check_leaf_bias("b_down", weights.b_down, stack.down, "w_down"); !status.ok()) return status;
    call->d_out = stack.down.packed.header.out_features;
    call->grouped.stacks = &stack;
    call->grouped.stack_count = 1;
    call->grouped.groups = leaves;
    call->grouped.activation = weights.activation;
    call->grouped.elementwise = call->tree.elementwise;
    return {};
}

Status open_master(const TensorView& x, const FffWeights& weights, FffCall* call) {
    if (!weights.master) {
        if (weights.mix) return fail("fff", "mix is given without a master");
        return {};
    }
    RowsView rows;
    if (Status status = open_ffn(x, *weights.master, nullptr, &call->master, &rows, nullptr); !status.ok()) {
        std::string text = status.message();
        if (text.rfind("ffn: ", 0) == 0) text = "fff: master: " + text.substr(5);
        return {status.code(), text};
    }
    const MatrixView& down = call->master.down.matrix;
    if (down.out_features != call->d_out)
        return fail("fff", "master's w_down has shape (" + std::to_string(down.out_features) + ", " +
                               std::to_string(down.in_features) + "), expected (" + std::to_string(call->d_out) + ", " +
                               std::to_string(down.in_features) + ") from the " + tree_text(call->tree.tree));
    call->has_master = true;
    if (weights.mix) {
        const double share = 1 / (1 + std::exp(-static_cast<double>(*weights.mix)));
        call->tree_share = static_cast<float>(share);
        call->master_share = static_cast<float>(1 / (1 + std::exp(static_cast<double>(*weights.mix))));
    }
    return {};
}

// Forced leaves: shape, dtype and range.
Status check_forced(const TensorView& x, const TensorView& leaf, const PackedTree& tree) {
    const std::int64_t trees = tree.header.trees;
    if (leaf.dtype != DType::i32 && leaf.dtype != DType::i64)
        return fail("fff", std::string("leaf has dtype ") + dtype_name(leaf.dtype) + ", expected i32 or i64");
    const bool per_tree = leaf.ndim == x.ndim && leaf.shape[leaf.ndim - 1] == trees;
    bool same = per_tree || (leaf.ndim == x.ndim - 1 && trees == 1);
    for (int i = 0; same && i + 1 < x.ndim; ++i) same = leaf.shape[i] == x.shape[i];
    if (!same) {
        TensorView expected = x;
        expected.shape[x.ndim - 1] = trees;
        return fail("fff", "leaf has shape " + leaf.shape_string() + ", expected " + expected.shape_string() +
                               " from x " + x.shape_string() + " and " + tree_text(tree));
    }
    if (!leaf.data && leaf.size() > 0) return fail("fff", "leaf has no data");
    return {};
}

std::int64_t forced_at(const TensorView& leaf, std::int64_t index) {
    std::int64_t offset = 0;
    for (int i = leaf.ndim - 1; i >= 0; --i) {
        offset += index % leaf.shape[i] * leaf.strides[i];
        index /= leaf.shape[i];
    }
    if (leaf.dtype == DType::i64) {
        std::int64_t value;
        std::memcpy(&value, static_cast<const std::byte*>(leaf.data) + offset * 8, 8);
        return value;
    }
    std::int32_t value;
    std::memcpy(&value, static_cast<const std::byte*>(leaf.data) + offset * 4, 4);
    return value;
}

// Checks the ids of forced leaves, and writes them where `ids` is given, numbered across the stack of trees if asked.
Status read_forced(const TensorView& leaf, const PackedTree& tree, bool of_stack, std::int32_t* ids) {
    const std::int64_t count = leaf.size(), trees = tree.header.trees, leaves = tree.leaves();
    for (std::int64_t i = 0; i < count; ++i) {
        const std::int64_t id = forced_at(leaf, i);
        if (id < 0 || id >= leaves)
            return fail("fff", "leaf holds " + std::to_string(id) + " at position " + std::to_string(i) +
                                   ", expected 0 to " + std::to_string(leaves - 1) + " from " + tree_text(tree));
        if (ids) ids[i] = static_cast<std::int32_t>(id + (of_stack ? i % trees * leaves : 0));
    }
    return {};
}

Status open_fff(const TensorView& x, const FffWeights& weights, const TensorView* y, FffCall* call) {
    if (static_cast<int>(weights.activation) >= activation_count)
        return fail("fff",
                    "activation number " + std::to_string(static_cast<int>(weights.activation)) + " is not known");
    if (Status status = open_route("fff", weights.tree, x, weights.plan, &call->tree, &call->x); !status.ok())
        return status;
    call->tree.activation = weights.activation;
    if (Status status = open_leaves(weights, call); !status.ok()) return status;
    call->tree.sums = !call->has_leaves;
    call->tree.leaf_of_stack = call->has_leaves;
    if (Status status = open_master(x, weights, call); !status.ok()) return status;
    if (weights.leaf)
        if (Status status = check_forced(x, *weights.leaf, call->tree.tree); !status.ok()) return status;
    if (!y) return {};
    if (Status status = check_y(x, *y, *call, &call->y); !status.ok()) return status;
    struct Input {
        const char* name;
        const TensorView* array;
        PackedView packed;
    };
    const FfnWeights none{};
    const FfnWeights& master = weights.master ? *weights.master : none;
    const Input inputs[] = {{"x", &x, {}},
                            {"tree", nullptr, weights.tree},
                            {"w_up", nullptr, weights.w_up},
                            {"w_down", nullptr, weights.w_down},
                            {"b_up", weights.b_up, {}},
                            {"b_down", weights.b_down, {}},
                            {"leaf", weights.leaf, {}},
                            {"master's w_up", nullptr, master.w_up},
                            {"master's w_down", nullptr, master.w_down},
                            {"master's w_gate", nullptr, master.w_gate},
                            {"master's b_up", master.b_up, {}},
                            {"master's b_down", master.b_down, {}},
                            {"master's b_gate", master.b_gate, {}}};
    for (const Input& input : inputs)
        if (input.array ? may_overlap(*y, *input.array) : may_overlap(*y, input.packed.data, input.packed.bytes))
            return fail("fff",
                        std::string("out and ") + input.name + " share a range of memory; give out memory of its own");
    return {};
}

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
    TensorView expected = x;
    expected.shape[x.ndim - 1] = call.tree.header.trees;
    struct Wanted {
        const char* name;
        const TensorView* array;
        DType dtype;
        int extra;
    };
    const Wanted wanted[] = {
        {"leaf", &leaf, DType::i32, 0}, {"margin", margin, DType::f32, 0}, {"z", z, DType::f32, 1}};
    for (const Wanted& w : wanted) {
        if (!w.array) continue;
        TensorView target = expected;
        if (x.ndim + w.extra > max_dims) return fail("fff_route", "x has too many dimensions for z");
        target.ndim = x.ndim + w.extra;
        if (w.extra) target.shape[x.ndim] = call.tree.levels;
        bool same = w.array->ndim == target.ndim && w.array->dtype == w.dtype;
        std::int64_t stride = 1;
        for (int i = target.ndim - 1; same && i >= 0; --i) {
            same = w.array->shape[i] == target.shape[i] &&
                   (target.size() == 0 || target.shape[i] == 1 || w.array->strides[i] == stride);
            stride *= target.shape[i];
        }
        if (!same)
            return fail("fff_route", std::string(w.name) + " is " + dtype_name(w.array->dtype) + " of shape " +
                                         w.array->shape_string() + ", expected contiguous " + dtype_name(w.dtype) +
                                         " " + target.shape_string());
        if (!w.array->data && target.size()) return fail("fff_route", std::string(w.name) + " has no data");
        if (may_overlap(x, *w.array) || may_overlap(*w.array, tree.data, tree.bytes))
            return fail("fff_route", std::string(w.name) + " and an input share a range of memory");
    }
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
