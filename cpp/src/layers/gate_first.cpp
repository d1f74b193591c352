#include "layers/gate_first.hpp"

#include <atomic>
#include <cmath>

#include "core/convert.hpp"
#include "core/parallel.hpp"
#include "fastffn/activation.hpp"
#include "layers/bias.hpp"

namespace fastffn {

namespace {

// Few rows: tasks per worker, and columns of a task at most, as in the dense engine.
constexpr std::int64_t tasks_per_worker = 12;
constexpr std::int64_t longest_run_panels = 64;
// Many rows: rows per task.
constexpr std::int64_t rows_per_task = 64;
// Lists are cut into about this many tasks per worker: their rows are of one length, so few do.
constexpr std::int64_t up_tasks_per_worker = 4;
constexpr std::int64_t serial_prepare_bytes = 64 << 10;

std::atomic<bool> counting{false};
std::atomic<std::int64_t> skipped_rows{0};

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

// A product's tasks: groups of panels × groups of rows.
struct Split {
    std::int64_t panels, panels_per_task, rows, rows_each;
    std::int64_t row_tasks() const { return divide_up(rows, rows_each); }
    std::int64_t column_tasks() const { return divide_up(panels, panels_per_task); }
    std::int64_t tasks() const { return column_tasks() * row_tasks(); }
    std::int64_t panel(std::int64_t task) const { return task / row_tasks() * panels_per_task; }
    std::int64_t panel_count(std::int64_t task) const { return least(panels_per_task, panels - panel(task)); }
    std::int64_t row(std::int64_t task) const { return task % row_tasks() * rows_each; }
    std::int64_t row_count(std::int64_t task) const { return least(rows_each, rows - row(task)); }
    std::int64_t tile_floats() const {
        const std::int64_t tile_rows = rows_each == rows && rows <= panel_columns ? rows : round_up(rows_each, 16);
        return tile_rows * panels_per_task * panel_columns;
    }
};

Split split(const Operand& operand, std::int64_t rows, int threads) {
    const std::int64_t panels = panels_of(operand.matrix);
    if (rows > operand.kernels->few_rows)
        return {panels, least(operand.kernels->block_panels, longest_run_panels), rows, rows_per_task};
    const std::int64_t multiple = operand.kernels->panel_multiple;
    const std::int64_t tasks =
        multiple > 1 ? threads * divide_up(panels, threads * longest_run_panels) : threads * tasks_per_worker;
    return {panels, least(round_up(divide_up(panels, tasks), multiple), longest_run_panels), rows, rows};
}

class GateFirstTile {
  public:
    GateFirstTile(const DenseLayer& layer, const GateFirstPlan& plan, const RowsView& x, const RowsView& y,
                  std::byte* workspace, std::int64_t tile)
        : layer_(layer),
          plan_(plan),
          x_(x),
          y_(y),
          workspace_(workspace),
          first_(tile * plan.dense.token_tile),
          rows_(least(plan.dense.token_tile, plan.dense.tokens - first_)) {}

    enum Phase : std::int64_t { prepare_x, gate, gather, up, prepare_hidden, output, phase_count };

    std::int64_t tasks(std::int64_t phase) const {
        switch (phase) {
            case prepare_x: return prepare_tasks(x_.cols) * (two_forms() ? 2 : 1);
            case gate: return split(layer_.gate, rows_, plan_.dense.threads).tasks();
            case gather: return rows_;
            case up: {  // either way's
                const std::int64_t dense = rows_ > 1 ? up_split().tasks() : 0, lists = rows_ * up_parts();
                return dense > lists ? dense : lists;
            }
            case prepare_hidden: return prepare_tasks(d_ff());
            default: return split(layer_.down, rows_, plan_.dense.threads).tasks();
        }
    }

    void run(std::int64_t phase, std::int64_t task, int worker) const {
        switch (phase) {
            case prepare_x: return run_prepare_x(task);
            case gate: return run_gate(task, worker);
            case gather: return run_gather(task);
            case up: return run_up(task, worker);
            case prepare_hidden: return run_prepare_hidden(task);
            default: return run_output(task, worker);
        }
    }

  private:
    bool two_forms() const { return plan_.dense.prepared_x_gate != plan_.dense.prepared_x; }
    std::int64_t d_ff() const { return layer_.up.matrix.out_features; }
    std::int64_t up_parts() const {
        return plan_.dense.threads == 1 ? 1 : divide_up(plan_.dense.threads * up_tasks_per_worker, rows_);
    }
    Split up_split() const { return split(layer_.up, rows_, plan_.dense.threads); }
    // Known once all lists are. Several tokens share what a product of all rows reads and expands, a token's list is its own: with
    // more than half of the gates live all rows are multiplied. One Zen 4 core, ternary 2560×6912 in L3: a token costs 0.75 of
    // a lone one, from 2 tokens to 128; from memory two lists of a half read as much as all.
    bool uses_lists() const {
        std::int64_t live = 0;
        for (std::int64_t r = 0; r < rows_; ++r) live += counts(r)[0];
        return rows_ == 1 || live * 2 <= rows_ * d_ff();
    }
    std::int64_t prepare_rows(std::int64_t cols) const { return rows_ * cols * 4 < serial_prepare_bytes ? rows_ : 16; }
    std::int64_t prepare_tasks(std::int64_t cols) const { return divide_up(rows_, prepare_rows(cols)); }
    float* tile(int worker) const {
        return reinterpret_cast<float*>(workspace_ + plan_.tiles + worker * plan_.tile_bytes);
    }
    float* hidden_row(std::int64_t row) const {
        return reinterpret_cast<float*>(workspace_ + plan_.hidden) + row * plan_.hidden_stride;
    }
    std::int32_t* list(std::int64_t row) const {
        return reinterpret_cast<std::int32_t*>(workspace_ + plan_.lists) + row * plan_.list_stride;
    }
    std::int32_t* counts(std::int64_t row) const {
        return reinterpret_cast<std::int32_t*>(workspace_ + plan_.counts) + row * plan_.count_stride;
    }

    void run_prepare_x(std::int64_t task) const {
        const std::int64_t tasks_per_form = prepare_tasks(x_.cols);
        const bool for_gate = task >= tasks_per_form;
        const Operand& operand = for_gate ? layer_.gate : layer_.up;
        std::byte* prepared = workspace_ + (for_gate ? plan_.dense.prepared_x_gate : plan_.dense.prepared_x);
        std::int64_t row = task % tasks_per_form * prepare_rows(x_.cols);
        const std::int64_t end = least(rows_, row + prepare_rows(x_.cols));
        while (row < end) {
            std::int64_t run = 0;
            const std::byte* src = x_.row(first_ + row, end - row, &run);
            operand.kernels->prepare(
                {src, x_.dtype, x_.row_stride(), run, x_.cols, row, 0, rows_, x_.cols, prepared, &operand.matrix});
            row += run;
        }
    }

    // Activated gates into the hidden rows, and for each row the live ones among this task's columns.
    void run_gate(std::int64_t task, int worker) const {
        const Split s = split(layer_.gate, rows_, plan_.dense.threads);
        const std::int64_t panel = s.panel(task), panels = s.panel_count(task), row0 = s.row(task);
        const std::int64_t rows = s.row_count(task), col0 = panel * panel_columns, cols = panels * panel_columns;
        float* product = tile(worker);
        layer_.gate.kernels->multiply({layer_.gate.matrix, workspace_ + plan_.dense.prepared_x_gate, rows_, row0, rows,
                                       panel, panels, product, cols});
        float gate_bias[longest_run_panels * panel_columns], up_bias[longest_run_panels * panel_columns];
        ActivateArgs act{};
        act.activation = layer_.activation;
        act.up = product;
        act.up_bias = load_bias(layer_.gate.bias, col0, cols, gate_bias);
        act.rows = rows;
        act.cols = cols;
        act.stride = cols;
        act.hidden = hidden_row(row0) + col0;
        act.hidden_stride = plan_.hidden_stride;
        layer_.elementwise->activate(act);
        const float* bias = load_bias(layer_.up.bias, col0, cols, up_bias);
        const std::int64_t real_cols = least(cols, d_ff() - col0);
        for (std::int64_t r = 0; r < rows; ++r) {
            const float* gates = act.hidden + r * act.hidden_stride;
            std::int32_t* live = list(row0 + r) + col0;
            std::int32_t count = 0;
            for (std::int64_t c = 0; c < real_cols; ++c) {
                live[count] = static_cast<std::int32_t>(col0 + c);
                // Zero times infinity or NaN is NaN: a bias that is not finite keeps its neuron.
                count += gates[c] != 0 || (bias && !(bias[c] * 0.0f == 0));
            }
            counts(row0 + r)[1 + task / s.row_tasks()] = count;
        }
    }

    // The lists of a row's tasks into one.
    void run_gather(std::int64_t row) const {
        const Split s = split(layer_.gate, rows_, plan_.dense.threads);
        std::int32_t* all = list(row);
        std::int32_t total = 0;
        for (std::int64_t i = 0; i < s.column_tasks(); ++i) {
            const std::int32_t count = counts(row)[1 + i];
            std::memmove(all + total, all + i * s.panels_per_task * panel_columns, static_cast<std::size_t>(count) * 4);
            total += count;
        }
        // Where x holds NaN or infinity all of its products with codes are NaN, and NaN times a gate of zero is NaN.
        const std::int32_t any_column = 0;
        float product = 0;
        layer_.up.kernels->dot_rows(
            {layer_.up.matrix, workspace_ + plan_.dense.prepared_x, rows_, row, &any_column, 1, &product});
        if (product != product) {
            total = static_cast<std::int32_t>(d_ff());
            for (std::int32_t c = 0; c < total; ++c) all[c] = c;
        }
        counts(row)[0] = total;
    }

    void run_up(std::int64_t task, int worker) const {
        if (!uses_lists()) {
            if (task < up_split().tasks()) run_up_all(task, worker);
            return;
        }
        if (task >= rows_ * up_parts()) return;
        const std::int64_t row = task / up_parts(), part = task % up_parts();
        if (part == 0 && counting.load(std::memory_order_relaxed)) skipped_rows += d_ff() - counts(row)[0];
        run_up_list(row, part);
    }

    void run_up_all(std::int64_t task, int worker) const {
        const Split s = up_split();
        const std::int64_t panel = s.panel(task), panels = s.panel_count(task), row0 = s.row(task);
        const std::int64_t rows = s.row_count(task), col0 = panel * panel_columns, cols = panels * panel_columns;
        float* products = tile(worker);
        layer_.up.kernels->multiply(
            {layer_.up.matrix, workspace_ + plan_.dense.prepared_x, rows_, row0, rows, panel, panels, products, cols});
        float bias_buffer[longest_run_panels * panel_columns];
        const float* bias = load_bias(layer_.up.bias, col0, cols, bias_buffer);
        for (std::int64_t r = 0; r < rows; ++r) {
            float* hidden = hidden_row(row0 + r) + col0;
            const float* product = products + r * cols;
            if (bias)
                for (std::int64_t c = 0; c < cols; ++c) hidden[c] *= product[c] + bias[c];
            else
                for (std::int64_t c = 0; c < cols; ++c) hidden[c] *= product[c];
        }
    }

    void run_up_list(std::int64_t row, std::int64_t part) const {
        constexpr std::int64_t chunk = 1024;
        float products[chunk];
        const std::int64_t total = counts(row)[0], share = round_up(divide_up(total, up_parts()), 4);
        const std::int32_t* live = list(row);
        float* hidden = hidden_row(row);
        const TensorView* bias = layer_.up.bias;
        const std::int64_t bias_stride = bias ? bias->strides[0] * element_bytes(bias->dtype) : 0;
        const std::int64_t end = least(total, (part + 1) * share);
        for (std::int64_t i = part * share; i < end; i += chunk) {
            const std::int64_t count = least(chunk, end - i);
            layer_.up.kernels->dot_rows(
                {layer_.up.matrix, workspace_ + plan_.dense.prepared_x, rows_, row, live + i, count, products});
            for (std::int64_t k = 0; k < count; ++k) {
                const std::int32_t c = live[i + k];
                const float b =
                    bias ? load_f32(static_cast<const std::byte*>(bias->data) + c * bias_stride, bias->dtype) : 0.0f;
                hidden[c] = hidden[c] * (bias ? products[k] + b : products[k]);
            }
        }
    }

    void run_prepare_hidden(std::int64_t task) const {
        const std::int64_t row0 = task * prepare_rows(d_ff()), stride = plan_.hidden_stride * 4;
        const std::int64_t rows = least(prepare_rows(d_ff()), rows_ - row0);
        if (layer_.sub_norm.gamma)
            layer_.elementwise->normalize({hidden_row(row0), plan_.hidden_stride, rows, d_ff(), layer_.sub_norm.cols,
                                           layer_.sub_norm.eps, layer_.sub_norm.gamma, layer_.sub_norm.dtype});
        layer_.down.kernels->prepare({reinterpret_cast<const std::byte*>(hidden_row(row0)), DType::f32, stride, rows,
                                      d_ff(), row0, 0, rows_, d_ff(), workspace_ + plan_.dense.prepared_hidden,
                                      &layer_.down.matrix});
    }

    void run_output(std::int64_t task, int worker) const {
        const Split s = split(layer_.down, rows_, plan_.dense.threads);
        const std::int64_t panel = s.panel(task), panels = s.panel_count(task), row0 = s.row(task);
        const std::int64_t rows = s.row_count(task), col0 = panel * panel_columns, cols = panels * panel_columns;
        float* sums = tile(worker);
        layer_.down.kernels->multiply({layer_.down.matrix, workspace_ + plan_.dense.prepared_hidden, rows_, row0, rows,
                                       panel, panels, sums, cols});
        float bias_buffer[longest_run_panels * panel_columns];
        const float* bias = load_bias(layer_.down.bias, col0, cols, bias_buffer);
        const std::int64_t real_cols = least(cols, layer_.down.matrix.out_features - col0);
        for (std::int64_t row = 0; row < rows;) {
            std::int64_t run = 0;
            std::byte* dst = y_.row(first_ + row0 + row, rows - row, &run);
            layer_.elementwise->store({sums + row * cols, cols, bias, run, real_cols,
                                       dst + col0 * element_bytes(y_.dtype), y_.dtype, y_.row_stride()});
            row += run;
        }
    }

    const DenseLayer& layer_;
    const GateFirstPlan& plan_;
    const RowsView& x_;
    const RowsView& y_;
    std::byte* workspace_;
    std::int64_t first_, rows_;
};

}  // namespace

const char* gate_first_obstacle(const DenseLayer& layer) noexcept {
    if (!layer.has_gate) return "w_gate, which is not given";
    if (layer.activation != Activation::relu && layer.activation != Activation::relu2)
        return "activation 'relu' or 'relu2', whose zeros are exact";
    if (layer.up.low_rank || layer.gate.low_rank || layer.down.low_rank) return "weights that are no pairs of factors";
    if (!layer.up.kernels->dot_rows) return "w_up packed as 'ternary' or 'int4' with order='rows'";
    if (layer.segments.count) return "all hidden columns, and segments are given";
    return nullptr;
}

GateFirstPlan plan_gate_first(const DenseLayer& layer, std::int64_t tokens, int threads) {
    GateFirstPlan plan;
    plan.dense = plan_dense(layer, tokens, threads);
    const std::int64_t d_ff = layer.up.matrix.out_features, token_tile = plan.dense.token_tile;
    std::int64_t offset =
        plan.dense.prepared_hidden + round_up(layer.down.kernels->prepared_bytes(token_tile, layer.down.matrix), 64);
    auto take = [&offset](std::int64_t bytes) {
        const std::int64_t at = offset;
        offset += round_up(bytes, 64);
        return at;
    };
    plan.hidden_stride = plan.dense.hidden_stride;
    plan.hidden = take(token_tile * plan.hidden_stride * 4);
    plan.list_stride = round_up(d_ff, panel_columns);
    plan.lists = take(token_tile * plan.list_stride * 4);
    // The last tile may be shorter, and then be cut otherwise.
    const std::int64_t last = tokens % (token_tile ? token_tile : 1);
    std::int64_t floats = 0, column_tasks = 0;
    for (std::int64_t rows : {token_tile, last}) {
        if (rows == 0) continue;
        for (const Operand* operand : {&layer.gate, &layer.up, &layer.down}) {
            const Split s = split(*operand, rows, plan.dense.threads);
            if (s.tile_floats() > floats) floats = s.tile_floats();
            if (operand == &layer.gate && s.column_tasks() > column_tasks) column_tasks = s.column_tasks();
        }
    }
    plan.count_stride = round_up(column_tasks + 1, panel_columns);
    plan.counts = take(token_tile * plan.count_stride * 4);
    plan.tile_bytes = round_up(floats * 4, 64);
    plan.tiles = take(plan.tile_bytes * plan.dense.threads);
    plan.workspace_bytes = offset;
    return plan;
}

void run_gate_first(const DenseLayer& layer, const GateFirstPlan& plan, const RowsView& x, const RowsView& y,
                    std::byte* workspace) noexcept {
    const std::int64_t tiles = divide_up(plan.dense.tokens, plan.dense.token_tile);
    auto call = [&](std::int64_t phase) {
        return GateFirstTile(layer, plan, x, y, workspace, phase / GateFirstTile::phase_count);
    };
    parallel_phases(
        plan.dense.threads, tiles * GateFirstTile::phase_count,
        [&](std::int64_t phase) { return call(phase).tasks(phase % GateFirstTile::phase_count); },
        [&](std::int64_t phase, std::int64_t task, int worker) {
            call(phase).run(phase % GateFirstTile::phase_count, task, worker);
        });
}

void count_skipped(bool on) noexcept { counting = on; }

std::int64_t counted_skipped() noexcept { return skipped_rows.exchange(0); }

}  // namespace fastffn
