// moe: every check, then the ids, weights and special experts as the grouped engine takes them.
#include "fastffn/moe.hpp"

#include <cmath>
#include <memory>
#include <new>
#include <string>

#include "core/convert.hpp"
#include "core/cpu.hpp"
#include "core/parallel.hpp"
#include "fastffn/ffn.hpp"
#include "layers/grouped.hpp"

namespace fastffn {

namespace {

// Ids and engine groups are 32-bit.
constexpr std::int64_t most_experts = (std::int64_t{1} << 31) - 1;
// Far above any memory, and small enough for every product.
constexpr std::int64_t most_slots = std::int64_t{1} << 40;
// Tokens per task of computing gates.
constexpr std::int64_t gate_tokens = 16;

Status invalid(const std::string& text) { return {StatusCode::invalid_argument, "moe: " + text}; }

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

float element(const TensorView& array, std::int64_t a, std::int64_t b, std::int64_t c = 0) {
    std::int64_t at = a * array.strides[0] + b * array.strides[1];
    if (array.ndim == 3) at += c * array.strides[2];
    return load_f32(static_cast<const std::byte*>(array.data) + at * element_bytes(array.dtype), array.dtype);
}

// [..., k] of any strides, row by row.
struct Slots {
    const TensorView* array = nullptr;

    std::int64_t picks() const { return array->shape[array->ndim - 1]; }
    const std::byte* at(std::int64_t row, std::int64_t pick) const {
        std::int64_t offset = pick * array->strides[array->ndim - 1];
        for (int i = array->ndim - 2; i >= 0; --i) {
            offset += (i ? row % array->shape[i] : row) * array->strides[i];
            if (i) row /= array->shape[i];
        }
        return static_cast<const std::byte*>(array->data) + offset * dtype_bytes(array->dtype);
    }
};

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

// A layer whose weights were checked. The first few stacks need no memory of their own.
struct OpenLayer {
    GroupedLayer grouped;
    std::int64_t experts = 0, shared = 0, constants = 0;  // routed experts, shared ones, constant ones
    std::int64_t d_model = 0, d_out = 0;
    std::string shape;  // of the first stack's w_up, for messages
    bool has_shared_gate = false;

    GroupStack* make(std::int64_t count) {
        if (count <= inline_stacks) return few_;
        many_.reset(new (std::nothrow) GroupStack[static_cast<std::size_t>(count)]);
        return many_.get();
    }

  private:
    static constexpr std::int64_t inline_stacks = 4;
    GroupStack few_[inline_stacks];
    std::unique_ptr<GroupStack[]> many_;
};

Status open_operand(const std::string& name, const PackedView& packed, GroupedOperand* operand) {
    if (Status status = open_packed(packed, "moe", name.c_str(), &operand->packed); !status.ok()) return status;
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
                  GroupStack* stack) {
    auto name = [&](const char* argument) { return where + argument + which; };
    *stack = {};
    stack->has_gate = experts.w_gate.data != nullptr || experts.w_gate.bytes != 0;
    if (!stack->has_gate && needs_gate(activation))
        return invalid("activation '" + std::string(activation_name(activation)) + "' needs a gate projection, and " +
                       name("w_gate") + " is not given");
    if (!stack->has_gate && experts.b_gate) return invalid(name("b_gate") + " is given without " + name("w_gate"));
    if (Status s = open_operand(name("w_up"), experts.w_up, &stack->up); !s.ok()) return s;
    if (Status s = open_operand(name("w_down"), experts.w_down, &stack->down); !s.ok()) return s;
    const PackedHeader &up = stack->up.packed.header, &down = stack->down.packed.header;
    if (stack->has_gate) {
        if (Status s = open_operand(name("w_gate"), experts.w_gate, &stack->gate); !s.ok()) return s;
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
        if (Status s = open_stack(experts, where, which, weights.activation, &opened[i]); !s.ok()) return s;
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

Status check_overlap(const TensorView& y, const TensorView& x, const TensorView& ids, const TensorView* weights,
                     const MoeWeights& layer) {
    auto fail = [](const char* name) {
        return invalid(std::string("out and ") + name + " share a range of memory; give out memory of its own");
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

// Workspace of a call: the engine's, then what it is told.
struct MoePlan {
    GroupedPlan grouped;
    std::int64_t slots = 0;  // per token: picks and shared experts
    std::int64_t ids = 0, weights = 0, input_weights = 0, x_scales = 0, vector_scales = 0;
    std::int64_t vectors = 0, mix = 0, gates = 0, vector_stride = 0;  // f32 copies
    std::int64_t workspace_bytes = 0;
};

MoePlan plan_moe(const OpenLayer& layer, std::int64_t tokens, std::int64_t picks, bool weights_on_input, int threads) {
    MoePlan plan;
    plan.slots = picks + layer.shared;
    plan.grouped =
        plan_grouped(layer.grouped, tokens, plan.slots, usable_threads(threads > 0 ? threads : default_threads()));
    std::int64_t offset = plan.grouped.workspace_bytes;
    auto take = [&offset](std::int64_t floats) {
        const std::int64_t at = offset;
        offset += round_up(floats * 4, 64);
        return at;
    };
    plan.vector_stride = round_up(layer.d_model, panel_columns);
    plan.ids = take(tokens * plan.slots);
    plan.weights = take(tokens * plan.slots);
    plan.input_weights = take(weights_on_input ? tokens * plan.slots : 0);
    plan.x_scales = take(tokens);
    plan.vector_scales = take(tokens * layer.constants);
    plan.vectors = take(plan.vector_stride * layer.constants);
    plan.mix = take(plan.vector_stride * layer.constants * 2);
    plan.gates = take(layer.has_shared_gate ? plan.vector_stride * layer.shared : 0);
    plan.workspace_bytes = offset;
    return plan;
}

// One call with everything checked but the values of ids.
struct MoeCall {
    const OpenLayer& layer;
    const MoeWeights& weights;
    const MoePlan& plan;
    const RowsView& x;
    Slots ids, pick_weights;  // pick_weights.array: nullptr without
    std::byte* workspace;

    template <class T>
    T* at(std::int64_t offset) const {
        return reinterpret_cast<T*>(workspace + offset);
    }
    std::int64_t picks() const { return plan.slots - layer.shared; }

    // Ids into [tokens, slots] as 32-bit numbers, special ones as they are, shared experts behind them.
    Status read_ids(std::int64_t* load) const {
        const std::int64_t all = layer.experts + weights.special.count;
        auto* out = at<std::int32_t>(plan.ids);
        for (std::int64_t t = 0; t < x.rows; ++t) {
            for (std::int64_t j = 0; j < picks(); ++j) {
                const std::byte* src = ids.at(t, j);
                std::int64_t id = 0;
                if (ids.array->dtype == DType::i32) {
                    std::int32_t narrow;
                    __builtin_memcpy(&narrow, src, 4);
                    id = narrow;
                } else {
                    __builtin_memcpy(&id, src, 8);
                }
                if (id < -1 || id >= all)
                    return invalid("ids holds " + std::to_string(id) + " in row " + std::to_string(t) + ", slot " +
                                   std::to_string(j) + ", expected -1 or 0 to " + std::to_string(all - 1));
                *out++ = static_cast<std::int32_t>(id);
            }
            for (std::int64_t s = 0; s < layer.shared; ++s) *out++ = static_cast<std::int32_t>(layer.experts + s);
        }
        if (!load) return {};
        for (std::int64_t e = 0; e < all; ++e) load[e] = 0;
        const auto* read = at<std::int32_t>(plan.ids);
        for (std::int64_t t = 0; t < x.rows; ++t, read += plan.slots)
            for (std::int64_t j = 0; j < picks(); ++j)
                if (read[j] >= 0) ++load[read[j]];
        return {};
    }

    void read_vectors() const {
        auto copy = [&](float* dst, const TensorView& src, std::int64_t row, std::int64_t second, bool is_mix) {
            for (std::int64_t c = 0; c < plan.vector_stride; ++c)
                dst[c] = c >= layer.d_model ? 0.0f : is_mix ? element(src, row, second, c) : element(src, row, c);
        };
        for (std::int64_t v = 0; v < layer.constants; ++v) {
            copy(at<float>(plan.vectors) + v * plan.vector_stride, *weights.special.vectors, v, 0, false);
            for (std::int64_t i = 0; i < 2; ++i)
                copy(at<float>(plan.mix) + (v * 2 + i) * plan.vector_stride, *weights.special.mix, v, i, true);
        }
        if (!layer.has_shared_gate) return;
        float* gate = at<float>(plan.gates);
        for (std::int64_t i = 0; i < weights.shared_stacks; ++i) {
            const std::int64_t count = layer.grouped.stacks[weights.stacks + i].groups();
            for (std::int64_t e = 0; e < count; ++e, gate += plan.vector_stride)
                if (weights.shared[i].gate) copy(gate, *weights.shared[i].gate, e, 0, false);
        }
    }

    float dot(std::int64_t token, const float* vector) const {
        std::int64_t run = 0;
        return layer.grouped.elementwise->dot(x.row(token, 1, &run), x.dtype, vector, layer.d_model);
    }

    // A token's weights in the engine's slots, and what its special experts leave of x and of their vectors.
    void read_token(std::int64_t t) const {
        std::int32_t* id = at<std::int32_t>(plan.ids) + t * plan.slots;
        float* out = at<float>(plan.weights) + t * plan.slots;
        float* in = weights.weights_on_input ? at<float>(plan.input_weights) + t * plan.slots : nullptr;
        float* vector_scales = at<float>(plan.vector_scales) + t * layer.constants;
        float x_scale = 0;
        for (std::int64_t v = 0; v < layer.constants; ++v) vector_scales[v] = 0;
        for (std::int64_t j = 0; j < picks(); ++j) {
            const float weight = pick_weights.array ? load_f32(pick_weights.at(t, j), pick_weights.array->dtype) : 1.0f;
            out[j] = in ? 1.0f : weight;
            if (in) in[j] = weight;
            if (id[j] < layer.experts) continue;
            std::int64_t special = id[j] - layer.experts, v = 0;
            id[j] = -1;
            const SpecialExpert kind = weights.special.kinds[special];
            if (kind == SpecialExpert::copy) x_scale += weight;
            if (kind != SpecialExpert::constant) continue;
            while (--special >= 0) v += weights.special.kinds[special] == SpecialExpert::constant;
            const float* mix = at<float>(plan.mix) + v * 2 * plan.vector_stride;
            float difference = dot(t, mix + plan.vector_stride) - dot(t, mix);
            if (in) difference *= weight;
            const float of_x = 1.0f / (1.0f + std::exp(difference));  // softmax of two
            const float of_vector = 1.0f / (1.0f + std::exp(-difference));
            x_scale += weight * of_x;
            vector_scales[v] += in ? of_vector : weight * of_vector;
        }
        at<float>(plan.x_scales)[t] = x_scale;
        const float* gate = at<float>(plan.gates);
        std::int64_t slot = picks();
        for (std::int64_t i = 0; i < weights.shared_stacks; ++i) {
            const std::int64_t count = layer.grouped.stacks[weights.stacks + i].groups();
            for (std::int64_t e = 0; e < count; ++e, ++slot, gate += plan.vector_stride) {
                out[slot] = weights.shared[i].gate ? 1.0f / (1.0f + std::exp(-dot(t, gate))) : 1.0f;
                if (in) in[slot] = 1.0f;
            }
        }
    }
};

}  // namespace

Status moe(Context& context, const TensorView& x, const TensorView& ids, const TensorView* weights,
           const MoeWeights& layer, const TensorView& y, std::int64_t* load) {
    OpenLayer open;
    RowsView x_rows, y_rows;
    if (Status s = open_layer(layer, &open); !s.ok()) return s;
    if (Status s = check_x(x, open, &x_rows); !s.ok()) return s;
    if (ids.dtype != DType::i32 && ids.dtype != DType::i64)
        return invalid(std::string("ids has dtype ") + dtype_name(ids.dtype) + ", expected i32 or i64");
    if (Status s = check_slots("ids", ids, x_rows.rows, x); !s.ok()) return s;
    const Slots id_slots{&ids};
    if (Status s = check_picks(x, x_rows.rows, id_slots.picks(), open); !s.ok()) return s;
    if (weights) {
        if (!is_float(weights->dtype))
            return invalid(std::string("weights has dtype ") + dtype_name(weights->dtype) +
                           ", expected f32, f16 or bf16");
        if (Status s = check_slots("weights", *weights, x_rows.rows, x); !s.ok()) return s;
        if (Slots{weights}.picks() != id_slots.picks())
            return invalid("weights has shape " + weights->shape_string() + ", expected " +
                           std::to_string(id_slots.picks()) + " per token from ids " + ids.shape_string());
    }
    if (Status s = check_y(x, y, open, &y_rows); !s.ok()) return s;
    if (Status s = check_overlap(y, x, ids, weights, layer); !s.ok()) return s;
    if (x_rows.rows == 0) {
        if (load)
            for (std::int64_t e = 0; e < open.experts + layer.special.count; ++e) load[e] = 0;
        return {};
    }
    const MoePlan plan = plan_moe(open, x_rows.rows, id_slots.picks(), layer.weights_on_input, context.threads());
    std::byte* workspace = context.workspace(plan.workspace_bytes);
    if (!workspace)
        return {StatusCode::out_of_memory,
                "moe: no memory for a workspace of " + std::to_string(plan.workspace_bytes) + " bytes"};
    const MoeCall call{open, layer, plan, x_rows, id_slots, {weights}, workspace};
    if (Status s = call.read_ids(load); !s.ok()) return s;
    call.read_vectors();
    const bool computes = open.has_shared_gate || open.constants > 0;
    const std::int64_t tasks = divide_up(x_rows.rows, gate_tokens);
    parallel_for(computes && tasks > 1 ? plan.grouped.threads : 1, tasks, [&](std::int64_t task, int) {
        for (std::int64_t t = task * gate_tokens; t < x_rows.rows && t < (task + 1) * gate_tokens; ++t)
            call.read_token(t);
    });
    GroupedRouting routing;
    routing.ids = call.at<std::int32_t>(plan.ids);
    if (open.has_shared_gate || (weights && !layer.weights_on_input)) routing.weights = call.at<float>(plan.weights);
    if (layer.weights_on_input && weights) routing.input_weights = call.at<float>(plan.input_weights);
    routing.tokens = x_rows.rows;
    routing.picks = plan.slots;
    for (std::int64_t i = 0; i < layer.special.count; ++i)
        if (layer.special.kinds[i] != SpecialExpert::zero) routing.x_scales = call.at<float>(plan.x_scales);
    routing.vector_scales = call.at<float>(plan.vector_scales);
    routing.vectors = call.at<float>(plan.vectors);
    routing.vector_count = open.constants;
    routing.vector_stride = plan.vector_stride;
    context.set_last_kernel(open.grouped.stacks[0].up.kernels->name);
    run_grouped(open.grouped, plan.grouped, routing, x_rows, y_rows, workspace);
    return {};
}

Status moe_workspace(const TensorView& x, std::int64_t picks, const MoeWeights& layer, int threads,
                     std::int64_t* bytes) {
    OpenLayer open;
    RowsView rows;
    if (Status s = open_layer(layer, &open); !s.ok()) return s;
    if (Status s = check_x(x, open, &rows); !s.ok()) return s;
    if (Status s = check_picks(x, rows.rows, picks, open); !s.ok()) return s;
    *bytes = rows.rows ? plan_moe(open, rows.rows, picks, layer.weights_on_input, threads).workspace_bytes : 0;
    return {};
}

Status moe_experts(const MoeWeights& layer, std::int64_t* experts) {
    OpenLayer open;
    if (Status s = open_layer(layer, &open); !s.ok()) return s;
    *experts = open.experts + layer.special.count;
    return {};
}

}  // namespace fastffn
