#include "layers/moe_checks.hpp"

#include "core/convert.hpp"
#include "core/cpu.hpp"
#include "core/parallel.hpp"
#include "fastffn/ffn.hpp"

namespace fastffn::moe_checks {

namespace {

// Ids and engine groups are 32-bit.
constexpr std::int64_t most_experts = (std::int64_t{1} << 31) - 1;
// Far above any memory, and small enough for every product.
constexpr std::int64_t most_slots = std::int64_t{1} << 40;
std::string stack_shape(const PackedMatrix& matrix) {
    const PackedHeader& h = matrix.header;
    return "(" + std::to_string(h.count) + ", " + std::to_string(h.out_features) + ", " +
           std::to_string(h.in_features) + ")";
}

bool is_float(DType dtype) { return dtype == DType::f32 || dtype == DType::f16 || dtype == DType::bf16; }

Status check_strides(const std::string& name, const TensorView& array) {
    for (int i = 0; i < array.ndim; ++i)
        if (array.shape[i] > 1 && array.strides[i] < 0)
            return invalid(name + " has the negative stride " + std::to_string(array.strides[i]) + " in dimension " +
                           std::to_string(i) + "; copy it first");
    return {};
}

// A small float array of an exact shape: a bias, a gate, a constant expert's vectors.
Status check_floats(const std::string& name, const TensorView& array, std::initializer_list<std::int64_t> shape,
                    const std::string& from) {
    const TensorView expected(static_cast<const void*>(nullptr), DType::f32, shape);
    if (!is_float(array.dtype))
        return invalid(name + " has dtype " + dtype_name(array.dtype) + ", expected f32, f16 or bf16");
    bool same = array.ndim == expected.ndim;
    for (int i = 0; same && i < array.ndim; ++i) same = array.shape[i] == expected.shape[i];
    if (!same)
        return invalid(name + " has shape " + array.shape_string() + ", expected " + expected.shape_string() +
                       " from " + from);
    if (!array.data && array.size() > 0) return invalid(name + " has no data");
    return check_strides(name, array);
}

Status check_slots(const char* name, const TensorView& array, std::int64_t rows, const TensorView& x) {
    if (array.ndim < 1 || array.ndim > max_dims)
        return invalid(std::string(name) + " has " + std::to_string(array.ndim) + " dimensions, expected 1 to " +
                       std::to_string(max_dims));
    std::int64_t found = 1;
    bool bad = false;
    for (int i = 0; i < array.ndim; ++i) bad = bad || array.shape[i] < 0;
    for (int i = 0; i + 1 < array.ndim && !bad; ++i) bad = __builtin_mul_overflow(found, array.shape[i], &found);
    if (bad || found != rows)
        return invalid(std::string(name) + " has shape " + array.shape_string() + ", expected (..., k) with " +
                       std::to_string(rows) + " rows from x " + x.shape_string());
    if (!array.data && array.size() > 0) return invalid(std::string(name) + " has no data");
    return check_strides(name, array);
}

Status open_operand(const std::string& name, const PackedView& packed, bool on_device, GroupedOperand* operand) {
    if (Status status = open_packed(packed, "moe", name.c_str(), &operand->packed,
                                    on_device ? device_rows_layout : cpu_panels_layout);
        !status.ok())
        return status;
    operand->kernels = &format_kernels(operand->packed, chosen_isa());
    return {};
}

Status check_bias(const std::string& name, const TensorView* bias, const std::string& weight_name,
                  GroupedOperand* operand) {
    if (!bias) return {};
    operand->bias = bias;
    const PackedHeader& header = operand->packed.header;
    return check_floats(name, *bias, {header.count, header.out_features},
                        weight_name + " " + stack_shape(operand->packed));
}

// One stack. `where` is how messages call it: "" or "shared ", with `which` behind the name: "" or "[3]".
Status open_stack(const MoeExperts& experts, const std::string& where, const std::string& which, Activation activation,
                  bool on_device, GroupStack* stack) {
    auto name = [&](const char* argument) { return where + argument + which; };
    *stack = {};
    stack->has_gate = experts.w_gate.data != nullptr || experts.w_gate.bytes != 0;
    if (!stack->has_gate && needs_gate(activation))
        return invalid("activation '" + std::string(activation_name(activation)) + "' needs a gate projection, and " +
                       name("w_gate") + " is not given");
    if (!stack->has_gate && experts.b_gate) return invalid(name("b_gate") + " is given without " + name("w_gate"));
    if (Status s = open_operand(name("w_up"), experts.w_up, on_device, &stack->up); !s.ok()) return s;
    if (Status s = open_operand(name("w_down"), experts.w_down, on_device, &stack->down); !s.ok()) return s;
    const PackedHeader &up = stack->up.packed.header, &down = stack->down.packed.header;
    if (stack->has_gate) {
        if (Status s = open_operand(name("w_gate"), experts.w_gate, on_device, &stack->gate); !s.ok()) return s;
        const PackedHeader& gate = stack->gate.packed.header;
        if (gate.count != up.count || gate.out_features != up.out_features || gate.in_features != up.in_features)
            return invalid(name("w_gate") + " has shape " + stack_shape(stack->gate.packed) + ", expected " +
                           stack_shape(stack->up.packed) + " from " + name("w_up"));
    }
    if (down.count != up.count || down.in_features != up.out_features)
        return invalid(name("w_down") + " has shape " + stack_shape(stack->down.packed) + ", expected (" +
                       std::to_string(up.count) + ", " + std::to_string(down.out_features) + ", " +
                       std::to_string(up.out_features) + ") from " + name("w_up") + " " +
                       stack_shape(stack->up.packed));
    if (Status s = check_bias(name("b_up"), experts.b_up, name("w_up"), &stack->up); !s.ok()) return s;
    if (Status s = check_bias(name("b_gate"), experts.b_gate, name("w_gate"), &stack->gate); !s.ok()) return s;
    if (const TensorView* gamma = experts.sub_norm) {
        if (Status s = check_floats(name("sub_norm"), *gamma, {up.count, up.out_features},
                                    name("w_up") + " " + stack_shape(stack->up.packed));
            !s.ok())
            return s;
        if (gamma->shape[1] > 1 && gamma->strides[1] != 1)
            return invalid(name("sub_norm") + " has stride " + std::to_string(gamma->strides[1]) +
                           " in its last dimension, expected 1; make it contiguous first");
        if (!(experts.sub_norm_eps >= 0) || experts.sub_norm_eps > 1e30f)
            return invalid(name("sub_norm_eps") + " is " + std::to_string(experts.sub_norm_eps) +
                           ", expected a number from 0 to 1e30");
        stack->sub_norm = gamma;
        stack->sub_norm_eps = experts.sub_norm_eps;
    }
    return check_bias(name("b_down"), experts.b_down, name("w_down"), &stack->down);
}

Status check_special(const MoeSpecial& special, OpenLayer* layer) {
    if (special.count < 0 || (special.count > 0 && !special.kinds))
        return invalid("special experts have a count of " + std::to_string(special.count) + " and no kinds");
    bool uses_x = false;
    for (std::int64_t i = 0; i < special.count; ++i) {
        if (special.kinds[i] > SpecialExpert::constant)
            return invalid("special expert " + std::to_string(i) + " has kind number " +
                           std::to_string(static_cast<int>(special.kinds[i])) + ", expected zero, copy or constant");
        uses_x = uses_x || special.kinds[i] != SpecialExpert::zero;
        layer->constants += special.kinds[i] == SpecialExpert::constant;
    }
    if (uses_x && layer->d_model != layer->d_out)
        return invalid("copy and constant experts return x, but w_down makes " + std::to_string(layer->d_out) +
                       " features of " + std::to_string(layer->d_model));
    const std::string from = std::to_string(layer->constants) + " constant experts and w_up " + layer->shape;
    if (layer->constants == 0) {
        if (special.vectors || special.mix) return invalid("vectors or mix is given without a constant expert");
        return {};
    }
    if (!special.vectors) return invalid("constant experts need vectors");
    if (!special.mix) return invalid("constant experts need mix");
    if (Status s = check_floats("vectors", *special.vectors, {layer->constants, layer->d_model}, from); !s.ok())
        return s;
    return check_floats("mix", *special.mix, {layer->constants, 2, layer->d_model}, from);
}

Status check_x(const TensorView& x, const OpenLayer& layer, RowsView* rows) {
    if (Status status = view_rows("moe", "x", x, rows); !status.ok()) return status;
    if (rows->cols != layer.d_model)
        return invalid("x has shape " + x.shape_string() + ", expected (..., " + std::to_string(layer.d_model) +
                       ") from w_up " + layer.shape);
    return {};
}

Status check_picks(const TensorView& x, std::int64_t tokens, std::int64_t picks, const OpenLayer& layer) {
    std::int64_t slots = 0;
    if (picks < 0) return invalid("k is " + std::to_string(picks) + ", expected at least 0");
    if (picks > most_experts || __builtin_mul_overflow(tokens, picks + layer.shared + layer.constants + 1, &slots) ||
        slots > most_slots)
        return invalid("x " + x.shape_string() + " with " + std::to_string(picks) +
                       " ids per token is more than any memory holds");
    return {};
}

Status check_y(const TensorView& x, const TensorView& y, const OpenLayer& layer, RowsView* rows) {
    if (Status status = view_rows("moe", "out", y, rows); !status.ok()) return status;
    TensorView expected = x;
    expected.shape[x.ndim - 1] = layer.d_out;
    bool same = y.ndim == x.ndim;
    for (int i = 0; same && i < y.ndim; ++i) same = y.shape[i] == expected.shape[i];
    if (!same)
        return invalid("out has shape " + y.shape_string() + ", expected " + expected.shape_string() + " from x " +
                       x.shape_string() + " and w_down " + stack_shape(layer.grouped.stacks[0].down.packed));
    if (rows_overlap(y))
        return invalid("out has shape " + y.shape_string() + " and strides " + y.stride_string() +
                       ": its rows share memory");
    return {};
}

// That what the call writes, y under the name of `what`, is none of what it reads.
Status check_overlap(const char* what, const TensorView& y, const TensorView& x, const TensorView& ids,
                     const TensorView* weights, const MoeWeights& layer) {
    auto fail = [what](const char* name) {
        return invalid(std::string(what) + " and " + name + " share a range of memory; give " + what +
                       " memory of its own");
    };
    if (may_overlap(y, x)) return fail("x");
    if (may_overlap(y, ids)) return fail("ids");
    if (weights && may_overlap(y, *weights)) return fail("weights");
    auto check = [&](const MoeExperts& experts) -> const char* {
        if (may_overlap(y, experts.w_up.data, experts.w_up.bytes)) return "w_up";
        if (may_overlap(y, experts.w_gate.data, experts.w_gate.bytes)) return "w_gate";
        if (may_overlap(y, experts.w_down.data, experts.w_down.bytes)) return "w_down";
        if (experts.b_up && may_overlap(y, *experts.b_up)) return "b_up";
        if (experts.b_gate && may_overlap(y, *experts.b_gate)) return "b_gate";
        if (experts.b_down && may_overlap(y, *experts.b_down)) return "b_down";
        if (experts.sub_norm && may_overlap(y, *experts.sub_norm)) return "sub_norm";
        return nullptr;
    };
    for (std::int64_t i = 0; i < layer.stacks; ++i)
        if (const char* name = check(layer.experts[i])) return fail(name);
    for (std::int64_t i = 0; i < layer.shared_stacks; ++i) {
        if (const char* name = check(layer.shared[i].experts)) return fail((std::string("shared ") + name).c_str());
        if (layer.shared[i].gate && may_overlap(y, *layer.shared[i].gate)) return fail("shared gate");
    }
    if (layer.special.vectors && may_overlap(y, *layer.special.vectors)) return fail("vectors");
    if (layer.special.mix && may_overlap(y, *layer.special.mix)) return fail("mix");
    return {};
}

}  // namespace

Status open_layer(const MoeWeights& weights, OpenLayer* layer) {
    if (Status status = check_isa(); !status.ok()) return status;
    if (Status status = check_threading(); !status.ok()) return status;
    if (static_cast<int>(weights.activation) >= activation_count)
        return invalid("activation number " + std::to_string(static_cast<int>(weights.activation)) + " is not known");
    if (weights.stacks < 1 || !weights.experts)
        return invalid("found " + std::to_string(weights.stacks) + " stacks of experts, expected at least 1");
    if (weights.shared_stacks < 0 || (weights.shared_stacks > 0 && !weights.shared))
        return invalid("found " + std::to_string(weights.shared_stacks) + " stacks of shared experts and no pointer");
    const std::int64_t stacks = weights.stacks + weights.shared_stacks;
    if (stacks > most_experts) return invalid("has " + std::to_string(stacks) + " stacks, too many");
    GroupStack* opened = layer->make(stacks);
    if (!opened) return {StatusCode::out_of_memory, "moe: no memory for " + std::to_string(stacks) + " stacks"};
    std::int64_t groups = 0;
    for (std::int64_t i = 0; i < stacks; ++i) {
        const bool shared = i >= weights.stacks;
        const std::int64_t index = shared ? i - weights.stacks : i;
        const std::string which =
            (shared ? weights.shared_stacks : weights.stacks) > 1 ? "[" + std::to_string(index) + "]" : std::string();
        const std::string where = shared ? "shared " : "";
        const MoeExperts& experts = shared ? weights.shared[index].experts : weights.experts[index];
        if (Status s = open_stack(experts, where, which, weights.activation, layer->on_device, &opened[i]); !s.ok())
            return s;
        const PackedHeader &up = opened[i].up.packed.header, &down = opened[i].down.packed.header;
        if (i == 0) {
            layer->d_model = up.in_features;
            layer->d_out = down.out_features;
            layer->shape = stack_shape(opened[0].up.packed);
        }
        if (up.in_features != layer->d_model || down.out_features != layer->d_out)
            return invalid(where + "w_up" + which + " " + stack_shape(opened[i].up.packed) + " and " + where +
                           "w_down" + which + " " + stack_shape(opened[i].down.packed) + " make " +
                           std::to_string(down.out_features) + " features of " + std::to_string(up.in_features) +
                           ", the first stack " + std::to_string(layer->d_out) + " of " +
                           std::to_string(layer->d_model));
        opened[i].first_group = groups;
        groups += up.count;
        if (!shared) {
            layer->experts = groups;
            continue;
        }
        layer->shared += up.count;
        if (const TensorView* gate = weights.shared[index].gate) {
            layer->has_shared_gate = true;
            if (Status s = check_floats("shared gate" + which, *gate, {up.count, layer->d_model},
                                        where + "w_up" + which + " " + stack_shape(opened[i].up.packed));
                !s.ok())
                return s;
        }
    }
    if (groups > most_experts - weights.special.count)
        return invalid("has " + std::to_string(groups) + " experts, expected at most 2^31 - 1");
    layer->grouped.stacks = opened;
    layer->grouped.stack_count = static_cast<int>(stacks);
    layer->grouped.groups = groups;
    layer->grouped.activation = weights.activation;
    layer->grouped.elementwise = &elementwise_kernels(chosen_isa());
    return check_special(weights.special, layer);
}

Status open_shapes(const TensorView& x, std::int64_t picks, const MoeWeights& weights, OpenLayer* layer,
                   RowsView* x_rows) {
    if (Status s = open_layer(weights, layer); !s.ok()) return s;
    if (Status s = check_x(x, *layer, x_rows); !s.ok()) return s;
    return check_picks(x, x_rows->rows, picks, *layer);
}

Status open_call(const TensorView& x, const TensorView& ids, const TensorView* weights, const MoeWeights& layer,
                 const TensorView& y, const std::int64_t* load, OpenLayer* open, RowsView* x_rows, RowsView* y_rows) {
    if (Status s = open_layer(layer, open); !s.ok()) return s;
    if (Status s = check_x(x, *open, x_rows); !s.ok()) return s;
    if (ids.dtype != DType::i32 && ids.dtype != DType::i64)
        return invalid(std::string("ids has dtype ") + dtype_name(ids.dtype) + ", expected i32 or i64");
    if (Status s = check_slots("ids", ids, x_rows->rows, x); !s.ok()) return s;
    const std::int64_t picks = Slots{&ids}.picks();
    if (Status s = check_picks(x, x_rows->rows, picks, *open); !s.ok()) return s;
    if (weights) {
        if (!is_float(weights->dtype))
            return invalid(std::string("weights has dtype ") + dtype_name(weights->dtype) +
                           ", expected f32, f16 or bf16");
        if (Status s = check_slots("weights", *weights, x_rows->rows, x); !s.ok()) return s;
        if (Slots{weights}.picks() != picks)
            return invalid("weights has shape " + weights->shape_string() + ", expected " + std::to_string(picks) +
                           " per token from ids " + ids.shape_string());
    }
    if (Status s = check_y(x, y, *open, y_rows); !s.ok()) return s;
    if (Status s = check_overlap("out", y, x, ids, weights, layer); !s.ok() || !load) return s;
    const TensorView counts(load, DType::i64, {open->experts + layer.special.count});
    if (may_overlap(counts, y)) return invalid("load and out share a range of memory; give load memory of its own");
    return check_overlap("load", counts, x, ids, weights, layer);
}

}  // namespace fastffn::moe_checks
