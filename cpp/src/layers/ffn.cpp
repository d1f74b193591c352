// linear and ffn: every check, then the engine.
#include "fastffn/ffn.hpp"

#include <cstring>

#include "core/cpu.hpp"
#include "core/names.hpp"
#include "core/parallel.hpp"
#include "layers/engine.hpp"
#include "layers/ffn.hpp"
#include "layers/gate_first.hpp"
#include "layers/lowrank.hpp"

namespace fastffn {

namespace {

constexpr const char* activation_names[activation_count] = {"identity",  "relu", "relu2",         "gelu",
                                                            "gelu_tanh", "silu", "swiglu_clamped"};

std::string matrix_shape(const MatrixView& m) {
    return "(" + std::to_string(m.out_features) + ", " + std::to_string(m.in_features) + ")";
}

Status open_operand(const char* operation, const char* name, const PackedView& packed, const DenseLayer& layer,
                    Operand* operand) {
    PackedMatrix matrix;
    if (Status status =
            open_packed(packed, operation, name, &matrix, layer.on_device ? device_rows_layout : cpu_panels_layout);
        !status.ok())
        return status;
    if (matrix.header.count != 1)
        return {StatusCode::invalid_argument, std::string(operation) + ": " + name + " is a stack of " +
                                                  std::to_string(matrix.header.count) +
                                                  " matrices, expected a single one"};
    operand->matrix = matrix.view();
    operand->low_rank = matrix.format->id == Format::lowrank;
    operand->kernels = &format_kernels(matrix, chosen_isa());
    return {};
}

Status check_bias(const char* operation, const char* name, const TensorView* bias, const Operand& operand,
                  const char* weight_name) {
    if (!bias) return {};
    auto fail = [&](const std::string& text) {
        return Status(StatusCode::invalid_argument, std::string(operation) + ": " + name + " has " + text);
    };
    if (bias->dtype != DType::f32 && bias->dtype != DType::f16 && bias->dtype != DType::bf16)
        return fail(std::string("dtype ") + dtype_name(bias->dtype) + ", expected f32, f16 or bf16");
    if (bias->ndim != 1 || bias->shape[0] != operand.matrix.out_features)
        return fail("shape " + bias->shape_string() + ", expected (" + std::to_string(operand.matrix.out_features) +
                    ",) from " + weight_name + " " + matrix_shape(operand.matrix));
    if (bias->shape[0] > 1 && bias->strides[0] < 0) return fail("a negative stride; copy it first");
    if (!bias->data) return fail("no data");
    return {};
}

// What ffn and linear have in common once their weights are open: x, y, and that nothing overlaps.
Status check_rows(const char* operation, const TensorView& x, const TensorView& y, const Operand& first,
                  const char* first_name, const Operand& last, const char* last_name, RowsView* x_rows,
                  RowsView* y_rows) {
    if (Status status = view_rows(operation, "x", x, x_rows); !status.ok()) return status;
    if (x_rows->cols != first.matrix.in_features)
        return {StatusCode::invalid_argument, std::string(operation) + ": x has shape " + x.shape_string() +
                                                  ", expected (..., " + std::to_string(first.matrix.in_features) +
                                                  ") from " + first_name + " " + matrix_shape(first.matrix)};
    if (!y_rows) return {};
    if (Status status = view_rows(operation, "out", y, y_rows); !status.ok()) return status;
    TensorView expected = x;
    expected.shape[x.ndim - 1] = last.matrix.out_features;
    bool same = y.ndim == x.ndim;
    for (int i = 0; same && i < y.ndim; ++i) same = y.shape[i] == expected.shape[i];
    if (!same)
        return {StatusCode::invalid_argument, std::string(operation) + ": out has shape " + y.shape_string() +
                                                  ", expected " + expected.shape_string() + " from x " +
                                                  x.shape_string() + " and " + last_name + " " +
                                                  matrix_shape(last.matrix)};
    if (rows_overlap(y))
        return {StatusCode::invalid_argument, std::string(operation) + ": out has shape " + y.shape_string() +
                                                  " and strides " + y.stride_string() + ": its rows share memory"};
    return {};
}

Status overlap_error(const char* operation, const char* name) {
    return {StatusCode::invalid_argument,
            std::string(operation) + ": out and " + name + " share a range of memory; give out memory of its own"};
}

// FASTFFN_ISA and FASTFFN_THREADING.
Status check_environment() {
    if (Status status = check_isa(); !status.ok()) return status;
    return check_threading();
}

}  // namespace

Status open_linear(const TensorView& x, const PackedView& w, const TensorView* bias, const TensorView* y,
                   DenseLayer* layer, RowsView* x_rows, RowsView* y_rows) {
    if (Status status = check_environment(); !status.ok()) return status;
    if (Status status = open_operand("linear", "w", w, *layer, &layer->down); !status.ok()) return status;
    layer->down.bias = bias;
    if (Status status = check_bias("linear", "bias", bias, layer->down, "w"); !status.ok()) return status;
    if (Status status = check_rows("linear", x, y ? *y : x, layer->down, "w", layer->down, "w", x_rows, y_rows);
        !status.ok())
        return status;
    if (y) {
        if (may_overlap(*y, x)) return overlap_error("linear", "x");
        if (may_overlap(*y, w.data, w.bytes)) return overlap_error("linear", "w");
        if (bias && may_overlap(*y, *bias)) return overlap_error("linear", "bias");
    }
    layer->elementwise = &elementwise_kernels(chosen_isa());
    return {};
}

namespace {

Status open_sub_norm(const FfnWeights& weights, const DenseLayer& layer, SubNorm* norm) {
    if (!weights.sub_norm) return {};
    const TensorView& gamma = *weights.sub_norm;
    const std::int64_t d_ff = layer.up.matrix.out_features;
    const auto fail = [](const std::string& text) {
        return Status(StatusCode::invalid_argument, "ffn: sub_norm" + text);
    };
    if (gamma.dtype != DType::f32 && gamma.dtype != DType::f16 && gamma.dtype != DType::bf16)
        return fail(std::string(" has dtype ") + dtype_name(gamma.dtype) + ", expected f32, f16 or bf16");
    if (gamma.ndim != 1 || gamma.shape[0] != d_ff)
        return fail(" has shape " + gamma.shape_string() + ", expected (" + std::to_string(d_ff) + ",) from w_up " +
                    matrix_shape(layer.up.matrix));
    if (d_ff > 1 && gamma.strides[0] != 1)
        return fail(" has stride " + std::to_string(gamma.strides[0]) + ", expected 1; make it contiguous first");
    if (!gamma.data) return fail(" has no data");
    if (!(weights.sub_norm_eps >= 0) || weights.sub_norm_eps > 1e30f)
        return fail("_eps is " + std::to_string(weights.sub_norm_eps) + ", expected a number from 0 to 1e30");
    norm->gamma = static_cast<const std::byte*>(gamma.data);
    norm->dtype = gamma.dtype;
    norm->eps = weights.sub_norm_eps;
    norm->cols = layer.segments.count ? 0 : d_ff;
    for (std::int64_t i = 0; i < layer.segments.count; ++i) norm->cols += layer.segments.list[i].length;
    return {};
}

}  // namespace

Status check_segments(const FfnWeights& weights, std::int64_t d_ff) {
    auto fail = [](const std::string& text) { return Status(StatusCode::invalid_argument, "ffn: segments " + text); };
    if (!weights.segments) return {};
    if (weights.segment_count < 1) return fail("is empty, expected at least one (start, length)");
    std::int64_t past = 0;
    for (std::int64_t i = 0; i < weights.segment_count; ++i) {
        const Segment& s = weights.segments[i];
        const std::string name = "holds (" + std::to_string(s.start) + ", " + std::to_string(s.length) + ")";
        if (s.start < 0 || s.length < 1 || s.start > d_ff || s.length > d_ff - s.start)
            return fail(name + ", expected a length of at least 1 within the " + std::to_string(d_ff) +
                        " hidden columns of w_up");
        if (s.start < past)
            return fail(name + ", which starts before column " + std::to_string(past) +
                        "; expected ascending segments that do not overlap");
        past = s.start + s.length;
    }
    return {};
}

Status open_ffn(const TensorView& x, const FfnWeights& weights, const TensorView* y, DenseLayer* layer,
                RowsView* x_rows, RowsView* y_rows) {
    if (Status status = check_environment(); !status.ok()) return status;
    if (static_cast<int>(weights.activation) >= activation_count)
        return {StatusCode::invalid_argument,
                "ffn: activation number " + std::to_string(static_cast<int>(weights.activation)) + " is not known"};
    layer->activation = weights.activation;
    layer->has_hidden = true;
    layer->has_gate = weights.w_gate.data != nullptr || weights.w_gate.bytes != 0;
    if (needs_gate(weights.activation) && !layer->has_gate)
        return {StatusCode::invalid_argument, std::string("ffn: activation '") + activation_name(weights.activation) +
                                                  "' needs a gate projection, and w_gate is not given"};
    if (Status status = open_operand("ffn", "w_up", weights.w_up, *layer, &layer->up); !status.ok()) return status;
    if (Status status = open_operand("ffn", "w_down", weights.w_down, *layer, &layer->down); !status.ok())
        return status;
    const MatrixView &up = layer->up.matrix, &down = layer->down.matrix;
    if (layer->has_gate) {
        if (Status status = open_operand("ffn", "w_gate", weights.w_gate, *layer, &layer->gate); !status.ok())
            return status;
        const MatrixView& gate = layer->gate.matrix;
        if (gate.out_features != up.out_features || gate.in_features != up.in_features)
            return {StatusCode::invalid_argument,
                    "ffn: w_gate has shape " + matrix_shape(gate) + ", expected " + matrix_shape(up) + " from w_up"};
    } else if (weights.b_gate) {
        return {StatusCode::invalid_argument, "ffn: b_gate is given without w_gate"};
    }
    if (down.in_features != up.out_features)
        return {StatusCode::invalid_argument, "ffn: w_down has shape " + matrix_shape(down) + ", expected (" +
                                                  std::to_string(down.out_features) + ", " +
                                                  std::to_string(up.out_features) + ") from x " + x.shape_string() +
                                                  " and w_up " + matrix_shape(up)};
    if (Status status = check_segments(weights, up.out_features); !status.ok()) return status;
    if (weights.segments) layer->segments = {weights.segments, weights.segment_count};
    if (Status status = open_sub_norm(weights, *layer, &layer->sub_norm); !status.ok()) return status;
    layer->up.bias = weights.b_up;
    layer->gate.bias = weights.b_gate;
    layer->down.bias = weights.b_down;
    if (Status status = check_bias("ffn", "b_up", weights.b_up, layer->up, "w_up"); !status.ok()) return status;
    if (Status status = check_bias("ffn", "b_gate", weights.b_gate, layer->gate, "w_gate"); !status.ok()) return status;
    if (Status status = check_bias("ffn", "b_down", weights.b_down, layer->down, "w_down"); !status.ok()) return status;
    if (Status status = check_rows("ffn", x, y ? *y : x, layer->up, "w_up", layer->down, "w_down", x_rows, y_rows);
        !status.ok())
        return status;
    if (y) {
        if (may_overlap(*y, x)) return overlap_error("ffn", "x");
        const PackedView* packed[] = {&weights.w_up, &weights.w_down, &weights.w_gate};
        const char* packed_names[] = {"w_up", "w_down", "w_gate"};
        const TensorView* biases[] = {weights.b_up, weights.b_down, weights.b_gate};
        const char* bias_names[] = {"b_up", "b_down", "b_gate"};
        if (weights.sub_norm && may_overlap(*y, *weights.sub_norm)) return overlap_error("ffn", "sub_norm");
        for (int i = 0; i < 3; ++i) {
            if (may_overlap(*y, packed[i]->data, packed[i]->bytes)) return overlap_error("ffn", packed_names[i]);
            if (biases[i] && may_overlap(*y, *biases[i])) return overlap_error("ffn", bias_names[i]);
        }
    }
    layer->elementwise = &elementwise_kernels(chosen_isa());
    return {};
}

Status choose_order(const FfnWeights& weights, DenseLayer* layer) {
    if (weights.gate_first == GateFirst::always) {
        if (const char* obstacle = gate_first_obstacle(*layer))
            return {StatusCode::invalid_argument, std::string("ffn: gate_first is asked for, and needs ") + obstacle +
                                                      " (activation is '" + activation_name(layer->activation) +
                                                      "', w_up runs on '" + layer->up.kernels->name + "')"};
        layer->gate_first = true;
    }
    if (weights.gate_first == GateFirst::automatic) layer->gate_first = !gate_first_obstacle(*layer);
    return {};
}

namespace {

int resolve_threads(int threads) { return usable_threads(threads > 0 ? threads : default_threads()); }

// Bytes of workspace and, given a context to take them from, the call itself.
Status run(const char* operation, Context* context, int threads, const DenseLayer& layer, const RowsView& x,
           const RowsView& y, std::int64_t* bytes) {
    *bytes = 0;
    if (x.rows == 0) return {};
    const auto call = [&](const auto& plan, const auto& run_plan) -> Status {
        *bytes = plan.workspace_bytes;
        if (!context) return {};
        std::byte* workspace = context->workspace(plan.workspace_bytes);
        if (!workspace)
            return {StatusCode::out_of_memory, std::string(operation) + ": no memory for a workspace of " +
                                                   std::to_string(plan.workspace_bytes) + " bytes"};
        context->set_last_kernel(layer.first().kernels->name);
        run_plan(plan, workspace);
        return {};
    };
    if (is_low_rank(layer)) {
        const LowRankLayer pairs = low_rank_layer(layer);
        return call(plan_low_rank(pairs, x.rows, resolve_threads(threads)),
                    [&](const LowRankPlan& plan, std::byte* workspace) { run_low_rank(pairs, plan, x, y, workspace); });
    }
    if (layer.gate_first)
        return call(
            plan_gate_first(layer, x.rows, resolve_threads(threads)),
            [&](const GateFirstPlan& plan, std::byte* workspace) { run_gate_first(layer, plan, x, y, workspace); });
    return call(plan_dense(layer, x.rows, resolve_threads(threads)),
                [&](const DensePlan& plan, std::byte* workspace) { run_dense(layer, plan, x, y, workspace); });
}

}  // namespace

const char* activation_name(Activation activation) noexcept {
    const int index = static_cast<int>(activation);
    return index < activation_count ? activation_names[index] : "unknown";
}

Status parse_activation(const char* name, Activation* activation) {
    for (int i = 0; i < activation_count; ++i)
        if (std::strcmp(name, activation_names[i]) == 0) {
            *activation = static_cast<Activation>(i);
            return {};
        }
    return {StatusCode::invalid_argument, "activation '" + std::string(name) + "' is not known; expected " +
                                              quoted_list({activation_names, activation_names + activation_count})};
}

Status linear(Context& context, const TensorView& x, const PackedView& w, const TensorView* bias, const TensorView& y) {
    DenseLayer layer;
    RowsView x_rows, y_rows;
    if (Status status = open_linear(x, w, bias, &y, &layer, &x_rows, &y_rows); !status.ok()) return status;
    std::int64_t bytes = 0;
    return run("linear", &context, context.threads(), layer, x_rows, y_rows, &bytes);
}

Status ffn(Context& context, const TensorView& x, const FfnWeights& weights, const TensorView& y) {
    DenseLayer layer;
    RowsView x_rows, y_rows;
    if (Status status = open_ffn(x, weights, &y, &layer, &x_rows, &y_rows); !status.ok()) return status;
    if (Status status = choose_order(weights, &layer); !status.ok()) return status;
    std::int64_t bytes = 0;
    return run("ffn", &context, context.threads(), layer, x_rows, y_rows, &bytes);
}

Status linear_workspace(const TensorView& x, const PackedView& w, int threads, std::int64_t* bytes) {
    DenseLayer layer;
    RowsView x_rows;
    if (Status status = open_linear(x, w, nullptr, nullptr, &layer, &x_rows, nullptr); !status.ok()) return status;
    return run("linear", nullptr, threads, layer, x_rows, {}, bytes);
}

Status ffn_workspace(const TensorView& x, const FfnWeights& weights, int threads, std::int64_t* bytes) {
    DenseLayer layer;
    RowsView x_rows;
    if (Status status = open_ffn(x, weights, nullptr, &layer, &x_rows, nullptr); !status.ok()) return status;
    if (Status status = choose_order(weights, &layer); !status.ok()) return status;
    return run("ffn", nullptr, threads, layer, x_rows, {}, bytes);
}

}  // namespace fastffn
