// Sizes of a grouped call: how many tokens share sums, and how much room waves of prepared rows have.
#include "layers/grouped_wave.hpp"

namespace fastffn {

namespace {

// Bytes of prepared and hidden rows that a wave has room for. One group may need all of it: each part of a group that has more
// rows reads its weights anew.
constexpr std::int64_t wave_budget = 12000000;
// Bytes of sums and sorted picks: 4096 tokens of 2048 features. Larger tiles read each weight less often.
constexpr std::int64_t sums_budget = 36000000;
// Batches of a wave; more small groups than these take another wave.
constexpr std::int64_t most_batches = 4096;

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

std::int64_t panels_of(const GroupedOperand& operand) {
    return divide_up(operand.packed.header.out_features, panel_columns);
}

// Bytes that `picks` prepared rows may take in all, however they spread over groups: a group's rows may be padded.
std::int64_t room_for(const GroupedOperand& operand, std::int64_t picks) {
    const MatrixView matrix = operand.packed.view();
    std::int64_t per_row = 0;
    for (std::int64_t rows = 1; rows <= 32 && rows <= picks; ++rows)
        per_row = most(per_row, divide_up(round_up(operand.kernels->prepared_bytes(rows, matrix), 64), rows));
    return per_row * picks;
}

}  // namespace

GroupedPlan plan_grouped(const GroupedLayer& layer, std::int64_t tokens, std::int64_t picks, int threads) {
    GroupedPlan plan;
    plan.tokens = tokens;
    plan.picks = picks;
    plan.threads = threads;
    const std::int64_t panels = panels_of(layer.stacks[0].down), d_model = layer.stacks[0].up.packed.header.in_features;

    const std::int64_t per_token = panels * panel_columns * 4 + picks * 12;
    std::int64_t tile = most(sums_budget / per_token / 16 * 16, 16);
    const std::int64_t tiles = divide_up(tokens, tile);
    if (tiles > 0) tile = round_up(divide_up(tokens, tiles), 16);
    plan.token_tile = least(tile, tokens);
    const std::int64_t tile_picks = plan.token_tile * picks;

    // What the widest stack's rows take.
    std::int64_t x = 0, x_gate = 0, prepared_hidden = 0, hidden = 0, block = 1, few = 1, run_panels = 1;
    std::int64_t x_room = 0, x_gate_room = 0, prepared_hidden_room = 0;
    for (int i = 0; i < layer.stack_count; ++i) {
        const GroupStack& stack = layer.stacks[i];
        auto row_bytes = [](const GroupedOperand& operand) {
            return divide_up(operand.kernels->prepared_bytes(largest_task_rows, operand.packed.view()),
                             largest_task_rows);
        };
        auto consider = [&](const GroupedOperand& operand) {
            block = most(block, operand.kernels->block_panels);
            few = most(few, operand.kernels->few_rows);
            run_panels = most(run_panels, panels_of(operand));
        };
        x = most(x, row_bytes(stack.up));
        x_room = most(x_room, room_for(stack.up, tile_picks));
        consider(stack.up);
        if (two_forms(stack)) {
            x_gate = most(x_gate, row_bytes(stack.gate));
            x_gate_room = most(x_gate_room, room_for(stack.gate, tile_picks));
        }
        if (stack.has_gate) consider(stack.gate);
        prepared_hidden = most(prepared_hidden, row_bytes(stack.down));
        prepared_hidden_room = most(prepared_hidden_room, room_for(stack.down, tile_picks));
        consider(stack.down);
        if (keeps_rows(stack)) hidden = most(hidden, hidden_stride(stack) * 4);
    }
    const std::int64_t rows = most(wave_budget / (x + x_gate + prepared_hidden + hidden) / 16 * 16, 64);
    plan.largest_rows = rows;
    plan.prepared_x_bytes = round_up(least(x_room, rows * x), 64);
    plan.prepared_x_gate_bytes = round_up(least(x_gate_room, rows * x_gate), 64);
    plan.prepared_hidden_bytes = round_up(least(prepared_hidden_room, rows * prepared_hidden), 64);
    plan.hidden_bytes = hidden * least(tile_picks, rows);
    plan.largest_batches = least(least(layer.groups, tile_picks), most_batches);

    // A tile holds a block of many rows, or a run of panels of few; 16 rows of a run, so that any mixture has room.
    const std::int64_t many = least(round_up(most(tile_picks, 1), 16), largest_task_rows);
    const std::int64_t run = least(run_panels, longest_run_panels) * most(round_up(least(few, tile_picks), 16), 16);
    std::int64_t floats = most(block * many, run) * panel_columns;
    floats = most(floats, round_up(divide_up(d_model, 2), 16));  // both tiles: one row of x to scale
    plan.tile_bytes = round_up(floats * 4, 64) * 2;

    std::int64_t offset = 0;
    auto take = [&offset](std::int64_t bytes) {
        const std::int64_t at = offset;
        offset += round_up(bytes, 64);
        return at;
    };
    plan.sums = take(SumsLayout::bytes(plan.token_tile, panels));
    plan.counts = take(layer.groups * 8);
    plan.pick_tokens = take(tile_picks * 4);
    plan.pick_weights = take(tile_picks * 4);
    plan.pick_input_weights = take(tile_picks * 4);
    plan.active = take(least(layer.groups, tile_picks) * static_cast<std::int64_t>(sizeof(ActiveGroup)));
    plan.batches = take(plan.largest_batches * static_cast<std::int64_t>(sizeof(Batch)));
    plan.prepared_x = take(plan.prepared_x_bytes);
    plan.prepared_x_gate = take(plan.prepared_x_gate_bytes);
    plan.prepared_hidden = take(plan.prepared_hidden_bytes);
    plan.hidden = take(plan.hidden_bytes);
    plan.tiles = take(plan.tile_bytes * plan.threads);
    plan.workspace_bytes = offset;
    return plan;
}

}  // namespace fastffn
