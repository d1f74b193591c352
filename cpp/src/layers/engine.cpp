#include "layers/engine.hpp"

#include "core/convert.hpp"
#include "core/parallel.hpp"
#include "layers/bias.hpp"

namespace fastffn {

namespace {

// Bytes that prepared and hidden rows of one token tile may take. Larger tiles reuse each weight byte more often (a
// token adds 2 FLOP per bf16 byte and matrix); this keeps a gated 4096×11008 call of up to four workers below 8 MB, each
// worker adding a tile of its own. Whole hidden rows of a token tile then lie in L3 rather than L2, on purpose: formats that
// scale or transform a hidden row need all of it, partial sums of y would take more room than the rows, and writing and
// reading a row costs 1 % of its arithmetic.
constexpr std::int64_t tile_budget = 6400000;
// More rows gain nothing: with 256, weights from memory are needed at 1 byte per 256 FLOP, 2 GB/s at 545 GFLOP/s.
constexpr std::int64_t largest_tile = 256;
// A worker's f32 tile of `few` rows spans at most this many columns: 16 rows of 1024 columns are 64 KiB.
constexpr std::int64_t longest_run_panels = 64;
// Tasks per worker: enough that one slow worker leaves little to wait for.
constexpr std::int64_t tasks_per_worker = 12;
// Rows are split where columns make too few tasks; eight blocks of rows still share a chunk of weights.
constexpr std::int64_t smallest_row_split = 48;
// Waking a second thread costs a few microseconds: below this estimate of work (bytes of weights, or FLOP at a 16th of
// a byte each) one thread is faster.
constexpr std::int64_t serial_work = 192 << 10;
// Preparing runs at 10 to 20 GB/s of f32: less than this is a few microseconds, one task.
constexpr std::int64_t serial_prepare_bytes = 64 << 10;

struct Blocks {
    std::int64_t panels_per_task, column_tasks, row_splits, rows_per_split;
    std::int64_t tasks() const { return column_tasks * row_splits; }
};

Blocks plan_blocks(const Operand& operand, std::int64_t panels, std::int64_t rows, int threads) {
    Blocks b{};
    if (rows <= operand.kernels->few_rows) {
        const std::int64_t multiple = operand.kernels->panel_multiple;
        const std::int64_t tasks =
            multiple > 1 ? threads * divide_up(panels, threads * longest_run_panels) : threads * tasks_per_worker;
        const std::int64_t share = round_up(divide_up(panels, tasks), multiple);
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

Blocks plan_blocks(const Operand& operand, std::int64_t rows, int threads) {
    return plan_blocks(operand, panels_of(operand.matrix), rows, threads);
}

// What the down projection multiplies at a time: hidden columns [begin, end), begin a multiple of 64.
struct Piece {
    std::int64_t begin, end;
    std::int64_t offset;  // of its prepared rows from prepared_hidden

    MatrixView down(const DenseLayer& layer) const {
        MatrixView view = layer.down.matrix;
        if (begin == 0 && end == view.in_features) return view;
        view.packed_features = view.in_features;
        view.in_features = end - begin;
        view.payload += begin * layer.down.kernels->column_bytes;
        return view;
    }
};

// use(piece) for each: all columns, or around each segment where the format lets them be views of their own. Segments that
// touch within 64 columns are one piece. `tokens`: the rows that offsets are for.
template <class Use>
void for_each_piece(const DenseLayer& layer, std::int64_t tokens, const Use& use) {
    const Segments& segments = layer.segments;
    if (!layer.has_hidden) return;
    if (segments.count == 0 || layer.down.kernels->column_bytes == 0)
        return use(Piece{0, layer.up.matrix.out_features, 0});
    std::int64_t offset = 0;
    for (std::int64_t i = 0; i < segments.count;) {
        Piece piece{segments.list[i].start / 64 * 64, 0, offset};
        do {
            piece.end = segments.list[i].start + segments.list[i].length;
        } while (++i < segments.count && segments.list[i].start / 64 * 64 <= piece.end);
        use(piece);
        offset += round_up(layer.down.kernels->prepared_bytes(tokens, piece.down(layer)), 64);
    }
}

std::int64_t count_pieces(const DenseLayer& layer) {
    std::int64_t count = 0;
    for_each_piece(layer, 1, [&](const Piece&) { ++count; });
    return count;
}

std::int64_t largest_tile_floats(const Operand& operand, std::int64_t token_tile, int threads) {
    // The last token tile may be shorter and then fall into the few-rows regime with its longer runs.
    const std::int64_t few = operand.kernels->few_rows < token_tile ? operand.kernels->few_rows : token_tile;
    const std::int64_t run = plan_blocks(operand, few, threads).panels_per_task * panel_columns * few;
    const std::int64_t block = operand.kernels->block_panels * panel_columns * round_up(token_tile, 16);
    return token_tile > operand.kernels->few_rows && block > run ? block : run;
}

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

bool keeps_hidden_rows(const DenseLayer& layer) {
    return layer.has_hidden && (layer.down.kernels->whole_rows || layer.sub_norm.gamma);
}

// One token tile of a call, and the tasks of its phases.
class TileCall {
  public:
    TileCall(const DenseLayer& layer, const DensePlan& plan, const RowsView& x, const RowsView& y, std::byte* workspace,
             std::int64_t tile)
        : layer_(layer),
          plan_(plan),
          x_(x),
          y_(y),
          workspace_(workspace),
          first_(tile * plan.token_tile),
          rows_(least(plan.token_tile, plan.tokens - first_)) {}

    enum Phase : std::int64_t { prepare_x, hidden, prepare_hidden, output, phase_count };

    std::int64_t tasks(std::int64_t phase) const {
        switch (phase) {
            case prepare_x: return prepare_tasks(x_.cols) * (two_forms() ? 2 : 1);
            case hidden: {
                std::int64_t tasks = 0;
                for_each_piece(layer_, rows_, [&](const Piece& piece) { tasks += hidden_blocks(piece).tasks(); });
                return tasks;
            }
            case prepare_hidden: return keeps_rows() ? prepare_tasks(d_ff()) : 0;
            default: return plan_blocks(layer_.down, rows_, plan_.threads).tasks();
        }
    }

    void run(std::int64_t phase, std::int64_t task, int worker) const {
        switch (phase) {
            case prepare_x: return run_prepare_x(task);
            case hidden: return run_hidden(task, worker);
            case prepare_hidden: return run_prepare_hidden(task);
            default: return run_output(task, worker);
        }
    }

  private:
    bool two_forms() const { return plan_.prepared_x_gate != plan_.prepared_x; }
    bool keeps_rows() const { return keeps_hidden_rows(layer_); }
    std::int64_t d_ff() const { return layer_.up.matrix.out_features; }
    float* tile(int worker) const {
        return reinterpret_cast<float*>(workspace_ + plan_.tiles + worker * plan_.tile_bytes);
    }

    // Rows per task of preparing: few where little is to do, else blocks of 16.
    std::int64_t prepare_rows(std::int64_t cols) const { return rows_ * cols * 4 < serial_prepare_bytes ? rows_ : 16; }
    std::int64_t prepare_tasks(std::int64_t cols) const { return divide_up(rows_, prepare_rows(cols)); }

    // The part of a matrix product that a task does.
    struct Part {
        std::int64_t first_panel, panels, col0, cols, real_cols, row0, rows;
    };
    Part part_of(const Operand& operand, std::int64_t task) const {
        return part_of(plan_blocks(operand, rows_, plan_.threads), 0, operand.matrix.out_features, task);
    }
    // The same for columns [begin, end).
    Part part_of(const Blocks& blocks, std::int64_t begin, std::int64_t end, std::int64_t task) const {
        Part part{};
        part.first_panel = begin / panel_columns + task / blocks.row_splits * blocks.panels_per_task;
        part.panels = least(blocks.panels_per_task, divide_up(end, panel_columns) - part.first_panel);
        part.col0 = part.first_panel * panel_columns;
        part.cols = part.panels * panel_columns;
        part.real_cols = least(part.cols, end - part.col0);
        part.row0 = task % blocks.row_splits * blocks.rows_per_split;
        part.rows = least(blocks.rows_per_split, rows_ - part.row0);
        return part;
    }
    Blocks hidden_blocks(const Piece& piece) const {
        return plan_blocks(layer_.up, divide_up(piece.end - piece.begin, panel_columns), rows_, plan_.threads);
    }
    void multiply(const Operand& operand, const std::byte* prepared, const Part& part, float* into) const {
        multiply(operand.matrix, operand, prepared, part, into);
    }
    void multiply(const MatrixView& matrix, const Operand& operand, const std::byte* prepared, const Part& part,
                  float* into) const {
        operand.kernels->multiply(
            {matrix, prepared, rows_, part.row0, part.rows, part.first_panel, part.panels, into, part.cols});
    }

    void run_prepare_x(std::int64_t task) const {
        const std::int64_t tasks_per_form = prepare_tasks(x_.cols), rows_per_task = prepare_rows(x_.cols);
        const bool for_gate = task >= tasks_per_form;
        const Operand& operand = for_gate ? layer_.gate : layer_.first();
        std::byte* prepared = workspace_ + (for_gate ? plan_.prepared_x_gate : plan_.prepared_x);
        std::int64_t row = task % tasks_per_form * rows_per_task;
        const std::int64_t end = least(rows_, row + rows_per_task);
        while (row < end) {
            std::int64_t run = 0;
            const std::byte* src = x_.row(first_ + row, end - row, &run);
            operand.kernels->prepare(
                {src, x_.dtype, x_.row_stride(), run, x_.cols, row, 0, rows_, x_.cols, prepared, &operand.matrix});
            row += run;
        }
    }

    // Hidden columns: up (and gate), activation, and the hidden tile into the down projection's prepared form.
    void run_hidden(std::int64_t task, int worker) const {
        for_each_piece(layer_, rows_, [&](const Piece& piece) {
            const Blocks blocks = hidden_blocks(piece);
            if (task >= 0 && task < blocks.tasks())
                run_hidden_part(piece, part_of(blocks, piece.begin, piece.end, task), worker);
            task -= blocks.tasks();
        });
    }
    void run_hidden_part(const Piece& piece, const Part& part, int worker) const {
        const FormatKernels& down = *layer_.down.kernels;
        float* up = tile(worker);
        const bool used = layer_.segments.any(part.col0, part.real_cols);
        float bias_buffer[2][longest_run_panels * panel_columns];
        ActivateArgs act{};
        act.activation = layer_.activation;
        act.up = up;
        act.up_bias = load_bias(layer_.up.bias, part.col0, part.cols, bias_buffer[0]);
        act.rows = part.rows;
        act.cols = part.cols;
        act.stride = part.cols;
        act.hidden = up;
        act.hidden_stride = part.cols;
        if (keeps_rows()) {
            act.hidden =
                reinterpret_cast<float*>(workspace_ + plan_.hidden) + part.row0 * plan_.hidden_stride + part.col0;
            act.hidden_stride = plan_.hidden_stride;
        }
        if (used) multiply(layer_.up, workspace_ + plan_.prepared_x, part, up);
        if (used && layer_.has_gate) {
            float* gate = up + plan_.tile_bytes / 8;  // the second half of the worker's tiles
            multiply(layer_.gate, workspace_ + plan_.prepared_x_gate, part, gate);
            act.gate = gate;
            act.gate_bias = load_bias(layer_.gate.bias, part.col0, part.cols, bias_buffer[1]);
        }
        if (used) layer_.elementwise->activate(act);
        layer_.segments.zero_others(act.hidden, act.hidden_stride, part.rows, part.col0, part.real_cols);
        if (!keeps_rows()) {
            const MatrixView view = piece.down(layer_);
            down.prepare({reinterpret_cast<const std::byte*>(up), DType::f32, part.cols * 4, part.rows, part.real_cols,
                          part.row0, part.col0 - piece.begin, rows_, piece.end - piece.begin,
                          workspace_ + plan_.prepared_hidden + piece.offset, &view});
        }
    }

    // Whole hidden rows: the norm, then the down projection's prepared form, in pieces where segments are views of their own.
    void run_prepare_hidden(std::int64_t task) const {
        const std::int64_t row0 = task * prepare_rows(d_ff()), stride = plan_.hidden_stride;
        const std::int64_t rows = least(prepare_rows(d_ff()), rows_ - row0);
        float* hidden = reinterpret_cast<float*>(workspace_ + plan_.hidden) + row0 * stride;
        if (layer_.sub_norm.gamma) normalize(hidden, rows);
        for_each_piece(layer_, rows_, [&](const Piece& piece) {
            const MatrixView view = piece.down(layer_);
            layer_.down.kernels->prepare({reinterpret_cast<const std::byte*>(hidden + piece.begin), DType::f32,
                                          stride * 4, rows, piece.end - piece.begin, row0, 0, rows_,
                                          piece.end - piece.begin, workspace_ + plan_.prepared_hidden + piece.offset,
                                          &view});
        });
    }
    void normalize(float* hidden, std::int64_t rows) const {
        const SubNorm& norm = layer_.sub_norm;
        // Columns that no segment holds may never have been written; and γ there may be anything.
        layer_.segments.zero_others(hidden, plan_.hidden_stride, rows, 0, d_ff());
        layer_.elementwise->normalize(
            {hidden, plan_.hidden_stride, rows, d_ff(), norm.cols, norm.eps, norm.gamma, norm.dtype});
        layer_.segments.zero_others(hidden, plan_.hidden_stride, rows, 0, d_ff());
    }

    // Output columns: down, bias, and y in its dtype.
    void run_output(std::int64_t task, int worker) const {
        const Operand& down = layer_.down;
        const Part part = part_of(down, task);
        float* sums = tile(worker);
        if (!layer_.has_hidden) multiply(down, workspace_ + plan_.prepared_x, part, sums);
        bool first = true;
        for_each_piece(layer_, rows_, [&](const Piece& piece) {
            float* product = first ? sums : sums + plan_.tile_bytes / 8;  // the second half of the worker's tiles
            multiply(piece.down(layer_), down, workspace_ + plan_.prepared_hidden + piece.offset, part, product);
            if (!first) layer_.elementwise->add({sums, part.cols, product, part.cols, part.rows, part.cols});
            first = false;
        });
        float bias_buffer[longest_run_panels * panel_columns];
        const float* bias = load_bias(down.bias, part.col0, part.cols, bias_buffer);
        for (std::int64_t row = 0; row < part.rows;) {
            std::int64_t run = 0;
            std::byte* dst = y_.row(first_ + part.row0 + row, part.rows - row, &run);
            layer_.elementwise->store({sums + row * part.cols, part.cols, bias, run, part.real_cols,
                                       dst + part.col0 * element_bytes(y_.dtype), y_.dtype, y_.row_stride()});
            row += run;
        }
    }

    const DenseLayer& layer_;
    const DensePlan& plan_;
    const RowsView& x_;
    const RowsView& y_;
    std::byte* workspace_;
    std::int64_t first_, rows_;
};

}  // namespace

DensePlan plan_dense(const DenseLayer& layer, std::int64_t tokens, int threads) {
    DensePlan plan;
    plan.tokens = tokens;
    const Operand& first = layer.first();
    const std::int64_t d_model = first.matrix.in_features;
    const bool two_forms =
        layer.has_gate && !rows_serve_both(*layer.gate.kernels, layer.gate.matrix, *layer.up.kernels, layer.up.matrix);
    const std::int64_t d_ff = layer.has_hidden ? layer.up.matrix.out_features : 0;
    const bool keeps_rows = keeps_hidden_rows(layer);
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
    plan.prepared_x = take(first.kernels->prepared_bytes(plan.token_tile, first.matrix));
    plan.prepared_x_gate =
        two_forms ? take(layer.gate.kernels->prepared_bytes(plan.token_tile, layer.gate.matrix)) : plan.prepared_x;
    if (layer.has_hidden) {
        std::int64_t bytes = 0;
        for_each_piece(layer, plan.token_tile, [&](const Piece& piece) {
            bytes = piece.offset + layer.down.kernels->prepared_bytes(plan.token_tile, piece.down(layer));
        });
        plan.prepared_hidden = take(bytes);
    }
    if (keeps_rows) plan.hidden = take(plan.token_tile * plan.hidden_stride * 4);
    std::int64_t floats = largest_tile_floats(layer.down, plan.token_tile, plan.threads);
    if (layer.has_hidden) {
        const std::int64_t hidden_floats = largest_tile_floats(layer.up, plan.token_tile, plan.threads);
        if (hidden_floats > floats) floats = hidden_floats;
        if (layer.has_gate) {
            // The gate's tile has the up projection's shape, whatever the gate's kernels prefer.
            const std::int64_t gate_floats = largest_tile_floats(layer.gate, plan.token_tile, plan.threads);
            if (gate_floats > floats) floats = gate_floats;
        }
    }
    plan.tile_bytes = round_up(floats * 4, 64) * (layer.has_gate || count_pieces(layer) > 1 ? 2 : 1);
    plan.tiles = take(plan.tile_bytes * plan.threads);
    plan.workspace_bytes = offset;
    return plan;
}

void run_dense(const DenseLayer& layer, const DensePlan& plan, const RowsView& x, const RowsView& y,
               std::byte* workspace) noexcept {
    const std::int64_t tiles = divide_up(plan.tokens, plan.token_tile);
    auto call = [&](std::int64_t phase) {
        return TileCall(layer, plan, x, y, workspace, phase / TileCall::phase_count);
    };
    parallel_phases(
        plan.threads, tiles * TileCall::phase_count,
        [&](std::int64_t phase) { return call(phase).tasks(phase % TileCall::phase_count); },
        [&](std::int64_t phase, std::int64_t task, int worker) {
            call(phase).run(phase % TileCall::phase_count, task, worker);
        });
}

}  // namespace fastffn
