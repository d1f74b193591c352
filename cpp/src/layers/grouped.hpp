// The grouped engine: every token goes through some groups of a stack of small FFNs, and the results are added up.
//
//   y[t] = Σ_{j < picks} weights[t, j] · ffn_{ids[t, j]}(x[t])
//
// Mixture of experts (a group is an expert) and leaf trees (a group is a leaf, picks = trees, no weights) are this one loop
// with other routers. Groups are summed in ascending order of their id, so threads never change a bit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/elementwise.hpp"
#include "formats/format.hpp"
#include "layers/rows.hpp"

namespace fastffn {

// One weight of all groups of a stack: matrix g belongs to group first_group + g.
struct GroupedOperand {
    PackedMatrix packed;  // header.count groups
    const FormatKernels* kernels = nullptr;
    const TensorView* bias = nullptr;  // [groups, out_features] f32, f16 or bf16; nullptr: none
};

// Consecutive groups of one shape and format.
struct GroupStack {
    GroupedOperand up, gate, down;
    std::int64_t first_group = 0;
    bool has_gate = false;
    const TensorView* sub_norm = nullptr;  // γ [groups, d_ff], rows contiguous; nullptr: none
    float sub_norm_eps = 0;

    std::int64_t groups() const { return up.packed.header.count; }
};

struct GroupedLayer {
    const GroupStack* stacks = nullptr;  // in ascending order of first_group, without gaps
    int stack_count = 0;
    std::int64_t groups = 0;  // of all stacks
    Activation activation{};
    const ElementwiseKernels* elementwise = nullptr;
};

// What a route says: the groups of each token. Ids were checked: each is in [-1, groups), -1 means an empty slot.
struct GroupedRouting {
    const std::int32_t* ids = nullptr;  // [tokens, picks], contiguous
    const float* weights = nullptr;     // [tokens, picks], contiguous; nullptr: all 1
    std::int64_t tokens = 0, picks = 0;
    const float* input_weights =
        nullptr;  // [tokens, picks]: multiply x before the group sees it (Llama 4); nullptr: all 1
    // What y starts from instead of 0: x_scales[t] · x[t] + Σ_v vector_scales[t, v] · vectors[v].
    const float* x_scales = nullptr;       // [tokens] or nullptr; needs as many output as input features
    const float* vector_scales = nullptr;  // [tokens, vector_count]
    const float* vectors = nullptr;        // [vector_count, vector_stride], whole panels: zeros behind the features
    std::int64_t vector_count = 0, vector_stride = 0;
};

// Sizes of one call, all derived from shapes and threads; offsets into the workspace in bytes.
struct GroupedPlan {
    std::int64_t tokens = 0, picks = 0, token_tile = 0;
    int threads = 1;

    // Per token tile: f32 sums of y, and the picks sorted by group.
    std::int64_t sums = 0, counts = 0, pick_tokens = 0, pick_weights = 0, pick_input_weights = 0, active = 0;
    // Per wave of groups: who takes part, and their rows.
    std::int64_t batches = 0, largest_batches = 0;
    std::int64_t prepared_x = 0, prepared_x_gate = 0, prepared_hidden = 0, hidden = 0;
    std::int64_t prepared_x_bytes = 0, prepared_x_gate_bytes = 0, prepared_hidden_bytes = 0, hidden_bytes = 0;
    std::int64_t largest_rows = 0;           // of one group in one wave
    std::int64_t tiles = 0, tile_bytes = 0;  // per worker: an up tile and a gate tile

    std::int64_t workspace_bytes = 0;
};

GroupedPlan plan_grouped(const GroupedLayer& layer, std::int64_t tokens, std::int64_t picks, int threads);

// Overwrites y. workspace: plan.workspace_bytes, 64-byte aligned.
void run_grouped(const GroupedLayer& layer, const GroupedPlan& plan, const GroupedRouting& routing, const RowsView& x,
                 const RowsView& y, std::byte* workspace) noexcept;

}  // namespace fastffn
