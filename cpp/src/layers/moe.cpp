// moe: every check, then the ids, weights and special experts as the grouped engine takes them.
#include "fastffn/moe.hpp"

#include <cmath>
#include <string>

#include "core/convert.hpp"
#include "core/parallel.hpp"
#include "layers/moe_checks.hpp"

namespace fastffn {

namespace {

using namespace moe_checks;

// Tokens per task of computing gates.
constexpr std::int64_t gate_tokens = 16;

float element(const TensorView& array, std::int64_t a, std::int64_t b, std::int64_t c = 0) {
    std::int64_t at = a * array.strides[0] + b * array.strides[1];
    if (array.ndim == 3) at += c * array.strides[2];
    return load_f32(static_cast<const std::byte*>(array.data) + at * element_bytes(array.dtype), array.dtype);
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
    if (Status s = open_call(x, ids, weights, layer, y, load, &open, &x_rows, &y_rows); !s.ok()) return s;
    const Slots id_slots{&ids};
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
    if (Status s = open_shapes(x, picks, layer, &open, &rows); !s.ok()) return s;
    *bytes = rows.rows ? plan_moe(open, rows.rows, picks, layer.weights_on_input, threads).workspace_bytes : 0;
    return {};
}

Status moe_experts(const MoeWeights& layer, std::int64_t* experts) {
    OpenLayer open;
    open.on_device = layer.stacks > 0 && layer.experts && layer.experts[0].w_up.header;
    if (Status s = open_layer(layer, &open); !s.ok()) return s;
    *experts = open.experts + layer.special.count;
    return {};
}

}  // namespace fastffn
