#include "layers/engine.hpp"

#include "core/convert.hpp"
#include "core/parallel.hpp"

namespace fastffn {

namespace {

// Bytes that prepared and hidden rows of one token tile may take. Larger tiles reuse each weight byte more often (a
// token adds 2 FLOP per bf16 byte and matrix); this keeps a gated 4096×11008 call below 8 MB.
constexpr std::int64_t tile_budget = 6400000;
constexpr std::int64_t largest_tile = 256;
// A worker's f32 tile of `few` rows spans at most this many columns: 16 rows of 1024 columns are 64 KiB.
constexpr std::int64_t longest_run_panels = 64;
// Tasks per worker: enough that one slow worker leaves little to wait for.
constexpr std::int64_t tasks_per_worker = 12;
constexpr std::int64_t smallest_row_split = 48;
// Waking a second thread costs a few microseconds: below this estimate of work (bytes of weights, or FLOP at a 16th of
// a byte each) one thread is faster.
constexpr std::int64_t serial_work = 192 << 10;
constexpr std::int64_t serial_prepare_bytes = 64 << 10;

struct Blocks {
    std::int64_t panels_per_task, column_tasks, row_splits, rows_per_split;
    std::int64_t tasks() const { return column_tasks * row_splits; }
};

Blocks plan_blocks(const Operand& operand, std::int64_t rows, int threads) {
    const std::int64_t panels = operand.matrix.panels();
    Blocks b{};
    if (rows <= operand.kernels->few_rows) {
        const std::int64_t share = divide_up(panels, threads * tasks_per_worker);
        b.panels_per_task = share > longest_run_panels ? longest_run_panels : share;
    } else {
        b.panels_per_task = operand.kernels->block_panels;
    }
    b.column_tasks = divide_up(panels, b.panels_per_task);
    b.row_splits = 1;
    if (threads > 1 && rows > operand.kernels->few_rows) {
        const std::int64_t wanted = divide_up(threads * tasks_per_worker, b.column_tasks);
        const std::int64_t possible = rows / smallest_row_split;
        b.row_splits = wanted < possible ? wanted : possible;
        if (b.row_splits < 1) b.row_splits = 1;
    }
    b.rows_per_split = round_up(divide_up(rows, b.row_splits), 16);
    b.row_splits = divide_up(rows, b.rows_per_split);
    return b;
}

std::int64_t largest_tile_floats(const Operand& operand, std::int64_t token_tile, int threads) {
    // The last token tile may be shorter and then fall into the few-rows regime with its longer runs.
    const std::int64_t few = operand.kernels->few_rows < token_tile ? operand.kernels->few_rows : token_tile;
    const std::int64_t run = plan_blocks(operand, few, threads).panels_per_task * panel_columns * few;
    const std::int64_t block = operand.kernels->block_panels * panel_columns * round_up(token_tile, 16);
    return token_tile > operand.kernels->few_rows && block > run ? block : run;
}

// A bias block as f32, zero past its end.
const float* load_bias(const TensorView* bias, std::int64_t col0, std::int64_t cols, float* buffer) {
    if (!bias) return nullptr;
    const std::int64_t bytes = element_bytes(bias->dtype), stride = bias->strides[0] * bytes;
    const std::byte* src = static_cast<const std::byte*>(bias->data) + col0 * stride;
    std::int64_t available = bias->shape[0] - col0;
    if (available > cols) available = cols;
    for (std::int64_t c = 0; c < available; ++c) buffer[c] = load_f32(src + c * stride, bias->dtype);
    for (std::int64_t c = available; c < cols; ++c) buffer[c] = 0;
    return buffer;
}

// Brings rows [first, first + rows) of x into prepared form.
void prepare_rows(const FormatKernels& kernels, const RowsView& x, std::int64_t first, std::int64_t rows, int threads,
                  std::byte* prepared) {
    const std::int64_t row_bytes = x.cols * 4;
    const std::int64_t rows_per_task = rows * row_bytes < serial_prepare_bytes ? rows : 16;
    parallel_for(threads, divide_up(rows, rows_per_task), [&](std::int64_t task, int) {
        std::int64_t row = task * rows_per_task;
        const std::int64_t end = row + rows_per_task < rows ? row + rows_per_task : rows;
        while (row < end) {
            std::int64_t run = 0;
            const std::byte* src = x.row(first + row, end - row, &run);
            kernels.prepare({src, x.dtype, x.row_stride(), run, x.cols, row, 0, rows, x.cols, prepared});
            row += run;
        }
    });
}

struct TileCall {
    const DenseLayer& layer;
    const DensePlan& plan;
    std::byte* workspace;
    std::int64_t first, rows;  // of this token tile
};

// Hidden columns: up (and gate), activation, and the hidden tile into the down projection's prepared form.
void run_hidden(const TileCall& call) {
    const DenseLayer& layer = call.layer;
    const DensePlan& plan = call.plan;
    const FormatKernels& down = *layer.down.kernels;
    const std::int64_t d_ff = layer.up.matrix.out_features;
    const Blocks blocks = plan_blocks(layer.up, call.rows, plan.threads);
    const std::byte* x_up = call.workspace + plan.prepared_x;
    const std::byte* x_gate = call.workspace + plan.prepared_x_gate;
    std::byte* prepared_hidden = call.workspace + plan.prepared_hidden;
    auto* hidden = reinterpret_cast<float*>(call.workspace + plan.hidden);
    parallel_for(plan.threads, blocks.tasks(), [&](std::int64_t task, int worker) {
        const std::int64_t first_panel = task / blocks.row_splits * blocks.panels_per_task;
        const std::int64_t row0 = task % blocks.row_splits * blocks.rows_per_split;
        std::int64_t rows = call.rows - row0, panels = layer.up.matrix.panels() - first_panel;
        if (rows > blocks.rows_per_split) rows = blocks.rows_per_split;
        if (panels > blocks.panels_per_task) panels = blocks.panels_per_task;
        const std::int64_t col0 = first_panel * panel_columns, cols = panels * panel_columns;
        const std::int64_t real_cols = d_ff - col0 < cols ? d_ff - col0 : cols;

        auto* up = reinterpret_cast<float*>(call.workspace + plan.tiles + worker * plan.tile_bytes);
        layer.up.kernels->multiply({layer.up.matrix, x_up, call.rows, row0, rows, first_panel, panels, up, cols});
        float bias_buffer[2][longest_run_panels * panel_columns];
        ActivateArgs act{};
        act.activation = layer.activation;
        act.up = up;
        act.up_bias = load_bias(layer.up.bias, col0, cols, bias_buffer[0]);
        act.rows = rows;
        act.cols = cols;
        act.stride = cols;
        act.hidden = down.whole_rows ? hidden + row0 * plan.hidden_stride + col0 : up;
        act.hidden_stride = down.whole_rows ? plan.hidden_stride : cols;
        if (layer.has_gate) {
            float* gate = up + plan.tile_bytes / 8;  // the second half of the worker's tiles
            layer.gate.kernels->multiply(
                {layer.gate.matrix, x_gate, call.rows, row0, rows, first_panel, panels, gate, cols});
            act.gate = gate;
            act.gate_bias = load_bias(layer.gate.bias, col0, cols, bias_buffer[1]);
        }
        layer.elementwise->activate(act);
        if (!down.whole_rows)
            down.prepare({reinterpret_cast<const std::byte*>(up), DType::f32, cols * 4, rows, real_cols, row0, col0,
                          call.rows, d_ff, prepared_hidden});
    });
    if (down.whole_rows) {
        RowsView view;
        view.data = call.workspace + plan.hidden;
        view.rows = call.rows;
        view.cols = d_ff;
        view.dims = 1;
        view.shape[0] = call.rows;
        view.strides[0] = plan.hidden_stride * 4;
        prepare_rows(down, view, 0, call.rows, plan.threads, prepared_hidden);
    }
}

// Output columns: down, bias, and y in its dtype.
void run_output(const TileCall& call, const std::byte* prepared, const RowsView& y) {
    const DensePlan& plan = call.plan;
    const Operand& down = call.layer.down;
    const Blocks blocks = plan_blocks(down, call.rows, plan.threads);
    const std::int64_t y_bytes = element_bytes(y.dtype);
    parallel_for(plan.threads, blocks.tasks(), [&](std::int64_t task, int worker) {
        const std::int64_t first_panel = task / blocks.row_splits * blocks.panels_per_task;
        const std::int64_t row0 = task % blocks.row_splits * blocks.rows_per_split;
        std::int64_t rows = call.rows - row0, panels = down.matrix.panels() - first_panel;
        if (rows > blocks.rows_per_split) rows = blocks.rows_per_split;
        if (panels > blocks.panels_per_task) panels = blocks.panels_per_task;
        const std::int64_t col0 = first_panel * panel_columns, cols = panels * panel_columns;
        const std::int64_t real_cols =
            down.matrix.out_features - col0 < cols ? down.matrix.out_features - col0 : cols;

        auto* tile = reinterpret_cast<float*>(call.workspace + plan.tiles + worker * plan.tile_bytes);
        down.kernels->multiply({down.matrix, prepared, call.rows, row0, rows, first_panel, panels, tile, cols});
        float bias_buffer[longest_run_panels * panel_columns];
        const float* bias = load_bias(down.bias, col0, cols, bias_buffer);
        for (std::int64_t row = 0; row < rows;) {
            std::int64_t run = 0;
            std::byte* dst = y.row(call.first + row0 + row, rows - row, &run);
            call.layer.elementwise->store({tile + row * cols, cols, bias, run, real_cols, dst + col0 * y_bytes, y.dtype,
                                           y.row_stride()});
            row += run;
        }
    });
}

}  // namespace

DensePlan plan_dense(const DenseLayer& layer, std::int64_t tokens, int threads) {
    DensePlan plan;
    plan.tokens = tokens;
    const Operand& first = layer.first();
    const std::int64_t d_model = first.matrix.in_features;
    const bool two_forms = layer.has_gate && layer.gate.kernels != layer.up.kernels;
    const std::int64_t d_ff = layer.has_hidden ? layer.up.matrix.out_features : 0;
    const bool keeps_rows = layer.has_hidden && layer.down.kernels->whole_rows;
    plan.hidden_stride = round_up(d_ff, panel_columns) + panel_columns;  // never a power of two: spreads cache sets

    // An estimate of the work: weights are read once per token tile, and every weight costs 2 FLOP per token.
    std::int64_t weights = layer.down.matrix.out_features * layer.down.matrix.in_features;
    if (layer.has_hidden) weights += d_ff * d_model * (layer.has_gate ? 2 : 1);
    const std::int64_t work = weights + (weights / 8) * (tokens < (1 << 20) ? tokens : 1 << 20);
    plan.threads = work < serial_work ? 1 : threads;

    std::int64_t per_token = d_model * first.kernels->element_bytes;
    if (two_forms) per_token += d_model * layer.gate.kernels->element_bytes;
    if (layer.has_hidden) per_token += d_ff * layer.down.kernels->element_bytes;
    if (keeps_rows) per_token += plan.hidden_stride * 4;
    std::int64_t tile = tile_budget / (per_token ? per_token : 1) / 16 * 16;
    if (tile > largest_tile) tile = largest_tile;
    if (tile < 16) tile = 16;
    const std::int64_t tiles = divide_up(tokens, tile);
    if (tiles > 0) tile = round_up(divide_up(tokens, tiles), 16);
    plan.token_tile = tile < tokens ? tile : tokens;

    std::int64_t offset = 0;
    auto take = [&offset](std::int64_t bytes) {
        const std::int64_t at = offset;
        offset += round_up(bytes, 64);
        return at;
    };
    plan.prepared_x = take(first.kernels->prepared_bytes(plan.token_tile, d_model));
    plan.prepared_x_gate =
        two_forms ? take(layer.gate.kernels->prepared_bytes(plan.token_tile, d_model)) : plan.prepared_x;
    if (layer.has_hidden) plan.prepared_hidden = take(layer.down.kernels->prepared_bytes(plan.token_tile, d_ff));
    if (keeps_rows) plan.hidden = take(plan.token_tile * plan.hidden_stride * 4);
    std::int64_t floats = largest_tile_floats(layer.down, plan.token_tile, plan.threads);
    if (layer.has_hidden) {
        const std::int64_t hidden_floats = largest_tile_floats(layer.up, plan.token_tile, plan.threads);
        if (hidden_floats > floats) floats = hidden_floats;
    }
    plan.tile_bytes = round_up(floats * 4, 64) * (layer.has_gate ? 2 : 1);
    plan.tiles = take(plan.tile_bytes * plan.threads);
    plan.workspace_bytes = offset;
    return plan;
}

void run_dense(const DenseLayer& layer, const DensePlan& plan, const RowsView& x, const RowsView& y,
               std::byte* workspace) noexcept {
    for (std::int64_t first = 0; first < plan.tokens; first += plan.token_tile) {
        const std::int64_t rows = plan.tokens - first < plan.token_tile ? plan.tokens - first : plan.token_tile;
        const TileCall call{layer, plan, workspace, first, rows};
        prepare_rows(*layer.first().kernels, x, first, rows, plan.threads, workspace + plan.prepared_x);
        if (plan.prepared_x_gate != plan.prepared_x)
            prepare_rows(*layer.gate.kernels, x, first, rows, plan.threads, workspace + plan.prepared_x_gate);
        if (layer.has_hidden) run_hidden(call);
        run_output(call, workspace + (layer.has_hidden ? plan.prepared_hidden : plan.prepared_x), y);
    }
}

}  // namespace fastffn
