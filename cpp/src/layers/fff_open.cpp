#include "layers/fff_open.hpp"

#include <cmath>
#include <cstring>

#include "core/cpu.hpp"
#include "core/parallel.hpp"
#include "layers/ffn.hpp"

namespace fastffn {

namespace {

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
        if (Status status = open_packed(packed, "fff", name, &operand->packed,
                                        call->on_device ? device_rows_layout : cpu_panels_layout);
            !status.ok())
            return status;
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
    call->master.on_device = call->on_device;
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

}  // namespace

Status open_route(const char* operation, const PackedView& packed, const TensorView& x, FffPlan plan, TreeCall* call,
                  RowsView* x_rows, bool on_device) {
    if (Status status = check_isa(); !status.ok()) return status;
    if (Status status = check_threading(); !status.ok()) return status;
    if (static_cast<int>(plan) > static_cast<int>(FffPlan::grouped))
        return fail(operation, "plan number " + std::to_string(static_cast<int>(plan)) + " is not known");
    if (Status status = open_tree(packed, operation, &call->tree, on_device ? tree_device_layout : tree_records_layout);
        !status.ok())
        return status;
    if (Status status = view_rows(operation, "x", x, x_rows); !status.ok()) return status;
    if (x_rows->cols != call->tree.header.d_model)
        return fail(operation, "x has shape " + x.shape_string() + ", expected (..., " +
                                   std::to_string(call->tree.header.d_model) + ") from " + tree_text(call->tree));
    call->kernels = &tree_kernels(chosen_isa());
    call->elementwise = &elementwise_kernels(chosen_isa());
    return {};
}

Status check_route_results(const TensorView& x, const PackedView& tree, const TreeCall& call, const TensorView& leaf,
                           const TensorView* margin, const TensorView* z) {
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
    return {};
}

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
    if (needs_gate(weights.activation))
        return fail("fff", std::string("activation '") + activation_name(weights.activation) +
                               "' needs a gate, which trees do not have");
    if (Status status = open_route("fff", weights.tree, x, weights.plan, &call->tree, &call->x, call->on_device);
        !status.ok())
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

}  // namespace fastffn
