// Which engine a low-rank layer runs on, and how much memory it takes.
#include "layers/lowrank.hpp"

#include "core/cpu.hpp"
#include "layers/lowrank_pieces.hpp"

namespace fastffn {

namespace {

// As in engine.cpp: below this estimate of work one thread is faster.
constexpr std::int64_t serial_work = 192 << 10;
// Prepared hidden rows that phases may keep, and the most tokens: more gain nothing over streaming.
constexpr std::int64_t kept_bytes = 6400000;
constexpr std::int64_t most_kept_tokens = 256;
// Up to here tiles of 32 rows give workers an even share; from here on 64 read weights half as often.
constexpr std::int64_t short_tiles_tokens = 1024;

LowRankOperand open(const Operand& operand) {
    LowRankOperand op;
    op.pair = operand.low_rank;
    op.bias = operand.bias;
    op.outer = operand.matrix;
    op.kernels = operand.kernels;
    if (op.pair) {
        op.view = lowrank_view(operand.matrix);
        op.outer = op.view.outer();
        op.kernels = &format_kernels(*op.view.factors, chosen_isa());
    }
    return op;
}

std::int64_t parameters_of(const LowRankOperand& op) {
    if (!op.pair) return op.outer.out_features * op.outer.in_features;
    return op.view.rank * (op.view.in_features + op.view.out_features);
}

}  // namespace

bool is_low_rank(const DenseLayer& layer) noexcept { return layer.down.low_rank; }

LowRankLayer low_rank_layer(const DenseLayer& dense) noexcept {
    LowRankLayer layer;
    layer.has_hidden = dense.has_hidden;
    layer.has_gate = dense.has_gate;
    layer.activation = dense.activation;
    layer.elementwise = dense.elementwise;
    layer.segments = dense.segments;
    layer.sub_norm = dense.sub_norm;
    layer.down = open(dense.down);
    if (dense.has_hidden) layer.up = open(dense.up);
    if (dense.has_gate) {
        layer.gate = open(dense.gate);
        const bool same_kernels = layer.gate.kernels == layer.up.kernels && layer.gate.pair == layer.up.pair;
        if (same_kernels && layer.up.pair) {
            layer.shared = layer.up.view.same_inner(layer.gate.view);
            layer.shared_x = !layer.shared;
        } else if (same_kernels) {
            layer.shared = rows_serve_both(*layer.gate.kernels, layer.gate.outer, *layer.up.kernels, layer.up.outer);
        }
    }
    return layer;
}

LowRankPlan plan_low_rank(const LowRankLayer& layer, std::int64_t tokens, int threads) noexcept {
    LowRankPlan plan;
    plan.tokens = tokens;
    std::int64_t weights = parameters_of(layer.down);
    if (layer.has_hidden) weights += parameters_of(layer.up);
    if (layer.has_gate) weights += parameters_of(layer.gate);
    const std::int64_t work = weights + (weights / 8) * least(tokens, 1 << 20);
    plan.threads = work < serial_work ? 1 : threads;

    const std::int64_t hidden_bytes = layer.down.view.in_features * layer.down.kernels->element_bytes;
    std::int64_t kept = kept_bytes / hidden_bytes / 16 * 16;
    if (kept > most_kept_tokens) kept = most_kept_tokens;
    if (kept < 16) kept = 16;
    plan.streams = tokens > kept;
    plan.token_tile = !plan.streams ? tokens : tokens < short_tiles_tokens ? low_rank_rows / 2 : low_rank_rows;
    if (plan.streams) plan.threads = static_cast<int>(least(plan.threads, divide_up(tokens, plan.token_tile)));

    std::int64_t offset = 0;
    const auto take = [&offset](std::int64_t bytes) {
        const std::int64_t at = offset;
        offset += round_up(bytes, 64);
        return at;
    };
    const std::int64_t tile_rows = round_up(plan.token_tile, 16);
    const LowRankOperand* const operands[] = {&layer.up, &layer.gate, &layer.down};
    const bool exists[] = {layer.has_hidden, layer.has_gate && !layer.shared, true};
    for (int slot : {slot_up, slot_gate, slot_down}) {
        if (!exists[slot]) continue;
        const LowRankOperand& op = *operands[slot];
        plan.prepared[slot] = take(op.kernels->prepared_bytes(plan.token_tile, op.outer));
        if (!op.pair || (slot == slot_gate && layer.shared_x)) continue;
        const std::int64_t block = round_up(op.kernels->prepared_bytes(plan.token_tile, op.view.inner(0)), 64);
        plan.block_bytes[slot] = plan.streams ? 0 : block;
        plan.blocks[slot] = take(plan.streams ? block : block * op.view.blocks());
    }
    // The sums of up and gate are done with when those of down begin.
    std::int64_t sum_bytes[3] = {};
    for (int slot : {slot_up, slot_gate, slot_down}) {
        if (!exists[slot] || !operands[slot]->pair) continue;
        plan.sums_stride[slot] = round_up(operands[slot]->view.rank, panel_columns);
        sum_bytes[slot] = tile_rows * plan.sums_stride[slot] * 4;
    }
    const std::int64_t x_sums = sum_bytes[slot_up] + sum_bytes[slot_gate];
    const std::int64_t sums = take(x_sums > sum_bytes[slot_down] ? x_sums : sum_bytes[slot_down]);
    plan.sums[slot_up] = plan.sums[slot_down] = sums;
    plan.sums[slot_gate] = sums + sum_bytes[slot_up];

    if (layer.sub_norm.gamma) plan.squares = take(plan.token_tile * layer.down.view.blocks() * 8);
    plan.tile_floats = low_rank_tile_floats;
    const std::int64_t tile_bytes = plan.tile_floats * 4 * (layer.has_gate ? 2 : 1);
    if (plan.streams) {
        plan.tiles = take(tile_bytes);
        plan.worker_bytes = offset;
        plan.workspace_bytes = plan.worker_bytes * plan.threads;
    } else {
        plan.tiles = take(tile_bytes * plan.threads);
        plan.worker_bytes = tile_bytes;
        plan.workspace_bytes = offset;
    }
    return plan;
}

void run_low_rank(const LowRankLayer& layer, const LowRankPlan& plan, const RowsView& x, const RowsView& y,
                  std::byte* workspace) noexcept {
    if (plan.streams) run_low_rank_stream(layer, plan, x, y, workspace);
    else run_low_rank_phases(layer, plan, x, y, workspace);
}

}  // namespace fastffn
