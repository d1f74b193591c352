// Gated layers whose activation leaves many zeros (relu, relu²): the gate first, then only the rows of w_up whose gate is not zero
// (BitNet a4.8, arXiv:2411.04965: 67.5 % of them are).
//
//   g = act(x · w_gateᵀ + b_gate);  live = {j : g[j] ≠ 0};  h[j] = g[j] · (x · w_up[j] + b_up[j]) for live j, 0 for others;  y = h · w_downᵀ + b_down
//
// Phases, each cut into tasks for all workers: prepare x → gate and lists of live columns → lists together → up rows, cut by count
// → prepare hidden → down. Every number is that of the dense order, bit for bit. Where most gates of several tokens live, all rows
// are multiplied after all; what is decided is seen in the lists, so threads do not change it.
#pragma once

#include "layers/engine.hpp"

namespace fastffn {

struct GateFirstPlan {
    DensePlan dense;  // tokens, token_tile, threads, prepared_x, prepared_x_gate, prepared_hidden
    std::int64_t hidden = 0, hidden_stride = 0;  // f32 rows: activated gates, then hidden values
    std::int64_t lists = 0, list_stride = 0;     // int32 per token: its live columns
    std::int64_t counts = 0,
                 count_stride = 0;           // int32 per token: how many each task of the gate found; their sum first
    std::int64_t tiles = 0, tile_bytes = 0;  // per worker
    std::int64_t workspace_bytes = 0;
};

// nullptr where the layer can run gate first, else what stands in the way, to follow "gate_first needs".
const char* gate_first_obstacle(const DenseLayer& layer) noexcept;

GateFirstPlan plan_gate_first(const DenseLayer& layer, std::int64_t tokens, int threads);

// workspace: plan.workspace_bytes, 64-byte aligned.
void run_gate_first(const DenseLayer& layer, const GateFirstPlan& plan, const RowsView& x, const RowsView& y,
                    std::byte* workspace) noexcept;

// Rows of w_up that calls of this process skipped since the last time, for tests; counting must have been switched on.
void count_skipped(bool on) noexcept;
std::int64_t counted_skipped() noexcept;

}  // namespace fastffn
