// Many tokens: every worker takes tiles of them through the whole layer.
#include "core/parallel.hpp"
#include "layers/lowrank_pieces.hpp"

namespace fastffn {

namespace {

// Panels of y per product: a tile of 64 rows × 256 columns.
constexpr std::int64_t output_panels = lowrank_block / panel_columns;

void add_all(const LowRankTile& tile, int slot, std::int64_t block, float* scratch) {
    const LowRankOperand& op = tile.operand(slot);
    const std::int64_t panels = divide_up(op.view.rank, panel_columns);
    // A few panels at a time, so that a product lies in L1 when it is added.
    const std::int64_t group = tile.rows() <= op.kernels->few_rows ? output_panels : op.kernels->block_panels;
    for (std::int64_t panel = 0; panel < panels; panel += group)
        tile.add_block(slot, block, 0, tile.rows(), panel, least(group, panels - panel), scratch);
}

void run_tile(const LowRankLayer& layer, const LowRankTile& tile, float* scratch) {
    const std::int64_t rows = tile.rows();
    const auto prepare_all = [&](int slot) {
        tile.prepare_sums(slot, 0, rows, 0, divide_up(tile.operand(slot).view.rank, panel_columns));
    };
    if (layer.has_hidden) {
        const bool own_gate = layer.has_gate && !layer.shared;
        if (!layer.up.pair) tile.prepare_x_rows(slot_up, 0, rows);
        if (own_gate && !layer.gate.pair) tile.prepare_x_rows(slot_gate, 0, rows);
        const bool project_gate = own_gate && layer.gate.pair;
        const std::int64_t blocks = layer.up.pair     ? layer.up.view.blocks()
                                    : layer.gate.pair ? layer.gate.view.blocks()
                                                      : 0;
        for (std::int64_t block = 0; block < blocks; ++block) {
            if (layer.up.pair) {
                tile.prepare_x_block(slot_up, block, 0, rows);
                add_all(tile, slot_up, block, scratch);
            }
            if (project_gate) {
                if (!layer.shared_x) tile.prepare_x_block(slot_gate, block, 0, rows);
                add_all(tile, slot_gate, block, scratch);
            }
        }
        if (layer.up.pair) prepare_all(slot_up);
        if (project_gate) prepare_all(slot_gate);
    }
    const LowRankView& down = layer.down.view;
    for (std::int64_t block = tile.used_block(slot_down, 0); block < down.blocks();
         block = tile.used_block(slot_down, block + 1)) {
        if (layer.has_hidden) tile.hidden_block(block, 0, rows, scratch);
        else tile.prepare_x_block(slot_down, block, 0, rows);
        add_all(tile, slot_down, block, scratch);
    }
    prepare_all(slot_down);
    const std::int64_t panels = panels_of(layer.down.outer);
    for (std::int64_t panel = 0; panel < panels; panel += output_panels)
        tile.output(0, rows, panel, least(output_panels, panels - panel), scratch);
}

}  // namespace

void run_low_rank_stream(const LowRankLayer& layer, const LowRankPlan& plan, const RowsView& x, const RowsView& y,
                         std::byte* workspace) noexcept {
    parallel_for(plan.threads, divide_up(plan.tokens, plan.token_tile), [&](std::int64_t index, int worker) {
        std::byte* memory = workspace + worker * plan.worker_bytes;
        run_tile(layer, LowRankTile(layer, plan, x, y, memory, index), reinterpret_cast<float*>(memory + plan.tiles));
    });
}

}  // namespace fastffn
