// The products of a low-rank layer on one tile of tokens, as both ways of running it need them.
#pragma once

#include "layers/bias.hpp"
#include "layers/lowrank.hpp"

namespace fastffn {

enum LowRankSlot : int { slot_up, slot_gate, slot_down };

// Rows that a task takes at a time: f32 tiles of 64 × 256 stay in L2, and a byte of bf16 weights from L3 serves 64 FLOP.
constexpr std::int64_t low_rank_rows = 64;
// Panels per task where rows are few: 6 rows of 64 panels are 24 KiB.
constexpr std::int64_t longest_low_rank_run = 64;
// A tile of one product: 64 rows of a block of hidden columns; more than 6 rows of the longest run.
constexpr std::int64_t low_rank_tile_floats = low_rank_rows * lowrank_block;

inline std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// A tile of tokens and where its intermediate results live.
class LowRankTile {
  public:
    LowRankTile(const LowRankLayer& layer, const LowRankPlan& plan, const RowsView& x, const RowsView& y,
                std::byte* memory, std::int64_t tile)
        : layer_(layer),
          plan_(plan),
          x_(x),
          y_(y),
          memory_(memory),
          first_(tile * plan.token_tile),
          rows_(least(plan.token_tile, plan.tokens - first_)) {}

    std::int64_t rows() const { return rows_; }
    const LowRankOperand& operand(int slot) const {
        return slot == slot_up ? layer_.up : slot == slot_gate ? layer_.gate : layer_.down;
    }
    std::byte* block_memory(int slot, std::int64_t block) const {
        if (slot == slot_gate && layer_.shared_x) slot = slot_up;
        return memory_ + plan_.blocks[slot] + block * plan_.block_bytes[slot];
    }
    double* squares() const { return reinterpret_cast<double*>(memory_ + plan_.squares); }
    float* sums(int slot) const { return reinterpret_cast<float*>(memory_ + plan_.sums[slot]); }
    std::byte* prepared(int slot) const { return memory_ + plan_.prepared[slot]; }

    // Rows [row0, row0 + rows) of x, columns of `block` of u, into the form that u's kernels eat.
    void prepare_x_block(int slot, std::int64_t block, std::int64_t row0, std::int64_t rows) const {
        const MatrixView inner = operand(slot).view.inner(block);
        prepare_x(*operand(slot).kernels, inner, block * lowrank_block, row0, rows, block_memory(slot, block));
    }
    // Whole rows of x for a plain matrix.
    void prepare_x_rows(int slot, std::int64_t row0, std::int64_t rows) const {
        prepare_x(*operand(slot).kernels, operand(slot).outer, 0, row0, rows, prepared(slot));
    }

    // The first block of u at or after `block` that the call uses, blocks() when there is none: all of x, segments of h.
    std::int64_t used_block(int slot, std::int64_t block) const {
        const LowRankView& view = operand(slot).view;
        if (slot == slot_down && layer_.has_hidden)
            while (block < view.blocks() && !layer_.segments.any(block * lowrank_block, view.block_columns(block)))
                ++block;
        return block;
    }

    // sums += block · u_blockᵀ for panels [panel, panel + panels) of the rank; the first used block starts them. scratch: a tile.
    void add_block(int slot, std::int64_t block, std::int64_t row0, std::int64_t rows, std::int64_t panel,
                   std::int64_t panels, float* scratch) const {
        const LowRankOperand& op = operand(slot);
        const std::int64_t stride = plan_.sums_stride[slot], cols = panels * panel_columns;
        float* to = sums(slot) + row0 * stride + panel * panel_columns;
        MultiplyArgs args{
            op.view.inner(block), block_memory(slot, block), rows_, row0, rows, panel, panels, to, stride};
        const bool starts = block == used_block(slot, 0);
        if (!starts) {
            args.tile = scratch;
            args.tile_stride = cols;
        }
        op.kernels->multiply(args);
        if (!starts) layer_.elementwise->add({to, stride, scratch, cols, rows, cols});
    }

    // Columns of the sums into the form that v's kernels eat: whole panels, all of them where the kernels need whole rows.
    void prepare_sums(int slot, std::int64_t row0, std::int64_t rows, std::int64_t panel, std::int64_t panels) const {
        const LowRankOperand& op = operand(slot);
        const std::int64_t stride = plan_.sums_stride[slot], col0 = panel * panel_columns, rank = op.view.rank;
        const std::int64_t cols = least(panels * panel_columns, rank - col0);
        float* from = sums(slot) + row0 * stride + col0;
        if (slot == slot_down && layer_.sub_norm.gamma) divide_by_rms(from, row0, rows, cols);
        op.kernels->prepare({reinterpret_cast<const std::byte*>(from), DType::f32, stride * 4, rows, cols, row0, col0,
                             rows_, rank, prepared(slot), &op.outer});
    }

    // Hidden columns of one block of down's u, activated, and prepared for it. tile: a tile, two with a gate.
    void hidden_block(std::int64_t block, std::int64_t row0, std::int64_t rows, float* tile) const;

    // y, columns of panels [panel, panel + panels).
    void output(std::int64_t row0, std::int64_t rows, std::int64_t panel, std::int64_t panels, float* tile) const;

  private:
    // Columns of the down projection's sums, of a norm's last step.
    void divide_by_rms(float* to, std::int64_t row0, std::int64_t rows, std::int64_t cols) const;

    void prepare_x(const FormatKernels& kernels, const MatrixView& matrix, std::int64_t col0, std::int64_t row0,
                   std::int64_t rows, std::byte* into) const {
        for (std::int64_t row = row0; row < row0 + rows;) {
            std::int64_t run = 0;
            const std::byte* src = x_.row(first_ + row, row0 + rows - row, &run) + col0 * element_bytes(x_.dtype);
            kernels.prepare({src, x_.dtype, x_.row_stride(), run, matrix.in_features, row, 0, rows_, matrix.in_features,
                             into, &matrix});
            row += run;
        }
    }
    // Panels of v (or of a plain matrix) into a tile.
    void multiply_outer(int slot, std::int64_t row0, std::int64_t rows, std::int64_t panel, std::int64_t panels,
                        float* tile, std::int64_t stride) const {
        const LowRankOperand& op = operand(slot);
        const int source = slot == slot_gate && layer_.shared ? slot_up : slot;
        op.kernels->multiply({op.outer, prepared(source), rows_, row0, rows, panel, panels, tile, stride});
    }

    const LowRankLayer& layer_;
    const LowRankPlan& plan_;
    const RowsView& x_;
    const RowsView& y_;
    std::byte* memory_;
    std::int64_t first_, rows_;
};

void run_low_rank_phases(const LowRankLayer& layer, const LowRankPlan& plan, const RowsView& x, const RowsView& y,
                         std::byte* workspace) noexcept;
void run_low_rank_stream(const LowRankLayer& layer, const LowRankPlan& plan, const RowsView& x, const RowsView& y,
                         std::byte* workspace) noexcept;

}  // namespace fastffn
