#include "layers/lowrank_pieces.hpp"

#include <atomic>

namespace fastffn {

namespace {
std::atomic<bool> counts{false};
std::atomic<std::int64_t> hidden_count{0};
}  // namespace

void count_hidden(bool on) noexcept { counts = on; }
std::int64_t counted_hidden() noexcept { return hidden_count.exchange(0); }

void LowRankTile::hidden_block(std::int64_t block, std::int64_t row0, std::int64_t rows, float* tile) const {
    const LowRankOperand& down = layer_.down;
    const MatrixView inner = down.view.inner(block);
    const std::int64_t col0 = block * lowrank_block, real_cols = inner.in_features;
    const std::int64_t panel = col0 / panel_columns, panels = divide_up(real_cols, panel_columns);
    const std::int64_t cols = panels * panel_columns;
    float bias[2][lowrank_block];
    multiply_outer(slot_up, row0, rows, panel, panels, tile, cols);
    ActivateArgs act{};
    act.activation = layer_.activation;
    act.up = tile;
    act.up_bias = load_bias(layer_.up.bias, col0, cols, bias[0]);
    act.rows = rows;
    act.cols = act.stride = act.hidden_stride = cols;
    act.hidden = tile;
    if (layer_.has_gate) {
        float* gate = tile + plan_.tile_floats;
        multiply_outer(slot_gate, row0, rows, panel, panels, gate, cols);
        act.gate = gate;
        act.gate_bias = load_bias(layer_.gate.bias, col0, cols, bias[1]);
    }
    layer_.elementwise->activate(act);
    layer_.segments.zero_others(tile, cols, rows, col0, cols);
    if (const SubNorm& norm = layer_.sub_norm; norm.gamma) {
        const std::int64_t blocks = down.view.blocks();
        layer_.elementwise->squares({tile, cols, rows, real_cols, norm.gamma + col0 * element_bytes(norm.dtype),
                                     norm.dtype, squares() + row0 * blocks + block, blocks});
        layer_.segments.zero_others(tile, cols, rows, col0, cols);  // γ there may be anything
    }
    if (counts.load(std::memory_order_relaxed)) hidden_count += rows * real_cols;
    // Columns past the last are no part of `cols`: whatever act(0) is, the kernels put zeros there.
    down.kernels->prepare({reinterpret_cast<const std::byte*>(tile), DType::f32, cols * 4, rows, real_cols, row0, 0,
                           rows_, real_cols, block_memory(slot_down, block), &inner});
}

void LowRankTile::divide_by_rms(float* to, std::int64_t row0, std::int64_t rows, std::int64_t cols) const {
    const std::int64_t blocks = layer_.down.view.blocks(), stride = plan_.sums_stride[slot_down];
    for (std::int64_t r = 0; r < rows; ++r) {
        double sum = 0;
        for (std::int64_t block = used_block(slot_down, 0); block < blocks; block = used_block(slot_down, block + 1))
            sum += squares()[(row0 + r) * blocks + block];
        const float scale = inverse_rms(sum, layer_.sub_norm.cols, layer_.sub_norm.eps);
        for (std::int64_t c = 0; c < cols; ++c) to[r * stride + c] *= scale;
    }
}

void LowRankTile::output(std::int64_t row0, std::int64_t rows, std::int64_t panel, std::int64_t panels,
                         float* tile) const {
    const LowRankOperand& down = layer_.down;
    const std::int64_t cols = panels * panel_columns, col0 = panel * panel_columns;
    multiply_outer(slot_down, row0, rows, panel, panels, tile, cols);
    float buffer[longest_low_rank_run * panel_columns];
    const float* bias = load_bias(down.bias, col0, cols, buffer);
    for (std::int64_t row = 0; row < rows;) {
        std::int64_t run = 0;
        std::byte* dst = y_.row(first_ + row0 + row, rows - row, &run);
        layer_.elementwise->store({tile + row * cols, cols, bias, run, least(cols, down.outer.out_features - col0),
                                   dst + col0 * element_bytes(y_.dtype), y_.dtype, y_.row_stride()});
        row += run;
    }
}

}  // namespace fastffn
