// The grouped engine's loops.
//
// A call walks over token tiles, as large as f32 sums of y may be. Per tile the picks are sorted by group, and the groups
// come in waves, as many as there is room for prepared rows. Per wave:
//   gather and prepare x → [multiply up (and gate) → activate → prepare hidden] per group and block of hidden columns →
//   [multiply down → add to the sums] per block of output columns, over all groups of the wave in ascending order
// A block of output columns of the sums belongs to one task, so nothing is added by two workers, and no row of a group's
// result exists outside a worker's tile. The last wave writes y. A packed byte is read once per tile unless its group has
// more rows than a wave.
#include "layers/grouped.hpp"

#include "core/convert.hpp"
#include "core/parallel.hpp"
#include "layers/grouped_wave.hpp"

namespace fastffn {

namespace {

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

std::int64_t columns_of(const GroupedOperand& operand) { return operand.packed.header.out_features; }
std::int64_t panels_of(const GroupedOperand& operand) { return divide_up(columns_of(operand), panel_columns); }

// Columns [col0, col0 + cols) of a group's bias as f32, zero past its end.
const float* load_bias(const TensorView* bias, std::int64_t group, std::int64_t col0, std::int64_t cols,
                       float* buffer) {
    if (!bias) return nullptr;
    const std::int64_t bytes = element_bytes(bias->dtype), stride = bias->strides[1] * bytes;
    const std::byte* src = static_cast<const std::byte*>(bias->data) + group * bias->strides[0] * bytes + col0 * stride;
    const std::int64_t available = least(bias->shape[1] - col0, cols);
    for (std::int64_t c = 0; c < available; ++c) buffer[c] = load_f32(src + c * stride, bias->dtype);
    for (std::int64_t c = available; c < cols; ++c) buffer[c] = 0;
    return buffer;
}

// One wave of a token tile, and the tasks of its phases.
class WaveCall {
  public:
    WaveCall(const GroupedLayer& layer, const GroupedPlan& plan, const GroupedRouting& routing, const RowsView& x,
             const RowsView& y, std::byte* workspace, const SortedPicks& picks)
        : layer_(layer), plan_(plan), routing_(routing), x_(x), y_(y), workspace_(workspace), picks_(picks) {}

    std::int64_t first = 0, tokens = 0;  // of the token tile
    bool is_first = false, is_last = false;
    Wave wave;

    enum Phase : std::int64_t { prepare_x, hidden, prepare_hidden, output, phase_count };

    std::int64_t tasks(std::int64_t phase) const {
        switch (phase) {
            case prepare_x: return wave.count ? divide_up(wave.padded_rows, wave.rows_per_prepare) : 0;
            case hidden: return wave.hidden_tasks;
            case prepare_hidden: return wave.keeps_rows ? divide_up(wave.padded_rows, wave.rows_per_prepare) : 0;
            default: return divide_up(divide_up(y_.cols, panel_columns), wave.slab_panels);
        }
    }

    void run(std::int64_t phase, std::int64_t task, int worker) const {
        switch (phase) {
            case prepare_x:
                return for_rows(task, [&](const Batch& batch, std::int64_t row, std::int64_t rows) {
                    const GroupStack& stack = *batch.stack;
                    gather(batch, stack.up, batch.prepared_x, row, rows, worker);
                    if (two_forms(stack)) gather(batch, stack.gate, batch.prepared_x_gate, row, rows, worker);
                });
            case hidden: return run_hidden(task, worker);
            case prepare_hidden:
                return for_rows(task, [&](const Batch& batch, std::int64_t row, std::int64_t rows) {
                    if (keeps_rows(*batch.stack)) prepare_rows(batch, row, rows);
                });
            default: return run_output(task, worker);
        }
    }

  private:
    float* tile(int worker) const {
        return reinterpret_cast<float*>(workspace_ + plan_.tiles + worker * plan_.tile_bytes);
    }
    float* sums() const { return reinterpret_cast<float*>(workspace_ + plan_.sums); }

    // run(batch, row, rows) for all rows of a task of preparing.
    template <class Run>
    void for_rows(std::int64_t task, const Run& run) const {
        const std::int64_t begin = task * wave.rows_per_prepare;
        const std::int64_t end = least(begin + wave.rows_per_prepare, wave.padded_rows);
        std::int64_t low = 0, high = wave.count;  // the last batch that begins at or before `begin`
        while (high - low > 1) {
            const std::int64_t middle = (low + high) / 2;
            (wave.batches[middle].padded_row <= begin ? low : high) = middle;
        }
        for (std::int64_t i = low; i < wave.count && wave.batches[i].padded_row < end; ++i) {
            const Batch& batch = wave.batches[i];
            const std::int64_t row = most(begin - batch.padded_row, 0);
            const std::int64_t rows = least(batch.rows, end - batch.padded_row) - row;
            if (rows > 0) run(batch, row, rows);
        }
    }

    // Rows of x into the form that `operand` eats.
    void gather(const Batch& batch, const GroupedOperand& operand, std::int64_t prepared, std::int64_t row,
                std::int64_t rows, int worker) const {
        const MatrixView matrix = operand.packed.view(batch.index);
        auto prepare = [&](const std::byte* src, DType dtype, std::int64_t stride, std::int64_t at,
                           std::int64_t count) {
            operand.kernels->prepare(
                {src, dtype, stride, count, x_.cols, at, 0, batch.rows, x_.cols, workspace_ + prepared, &matrix});
        };
        const std::int32_t* picked = picks_.tokens + batch.first_pick;
        if (!picks_.input_weights && !operand.kernels->own_rows) {
            for (std::int64_t r = row; r < row + rows;) {
                std::int64_t wanted = 1, run = 0;  // neighbours in x go together
                while (r + wanted < row + rows && picked[r + wanted] == picked[r] + wanted) ++wanted;
                const std::byte* src = x_.row(first + picked[r], wanted, &run);
                prepare(src, x_.dtype, x_.row_stride(), r, run);
                r += run;
            }
            return;
        }
        // Rows that are scaled, or that a matrix is multiplied with while they are prepared, are gathered in f32.
        float* rows_f32 = tile(worker);
        const std::int64_t at_once = most(plan_.tile_bytes / 4 / x_.cols, 1), bytes = element_bytes(x_.dtype);
        for (std::int64_t r = row; r < row + rows; r += at_once) {
            const std::int64_t count = least(at_once, row + rows - r);
            for (std::int64_t i = 0; i < count; ++i) {
                std::int64_t run = 0;
                const std::byte* src = x_.row(first + picked[r + i], 1, &run);
                const float weight = picks_.input_weights ? picks_.input_weights[batch.first_pick + r + i] : 1.0f;
                for (std::int64_t c = 0; c < x_.cols; ++c)
                    rows_f32[i * x_.cols + c] = weight * load_f32(src + c * bytes, x_.dtype);
            }
            prepare(reinterpret_cast<const std::byte*>(rows_f32), DType::f32, x_.cols * 4, r, count);
        }
    }

    // Hidden columns: up (and gate), activation, and the hidden tile into the down projection's prepared form.
    void run_hidden(std::int64_t task, int worker) const {
        std::int64_t low = 0, high = wave.count;  // the last batch whose tasks begin at or before this one
        while (high - low > 1) {
            const std::int64_t middle = (low + high) / 2;
            (wave.batches[middle].first_task <= task ? low : high) = middle;
        }
        const Batch& head = wave.batches[low];
        if (head.bundle == 1) return run_hidden_part(head, task - head.first_task, worker);
        for (std::int64_t i = 0; i < head.bundle; ++i) run_hidden_part(wave.batches[low + i], 0, worker);
    }

    void run_hidden_part(const Batch& batch, std::int64_t task, int worker) const {
        const GroupStack& stack = *batch.stack;
        const std::int64_t first_panel = task / batch.row_splits * batch.panels_per_task;
        const std::int64_t panels = least(batch.panels_per_task, panels_of(stack.up) - first_panel);
        const std::int64_t col0 = first_panel * panel_columns, cols = panels * panel_columns;
        const std::int64_t row0 = task % batch.row_splits * batch.rows_per_split;
        const std::int64_t rows = least(batch.rows_per_split, batch.rows - row0);
        auto multiply = [&](const GroupedOperand& operand, std::int64_t prepared, float* into) {
            operand.kernels->multiply({operand.packed.view(batch.index), workspace_ + prepared, batch.rows, row0, rows,
                                       first_panel, panels, into, cols});
        };
        float* up = tile(worker);
        multiply(stack.up, batch.prepared_x, up);
        float bias_buffer[2][longest_run_panels * panel_columns];
        ActivateArgs act{};
        act.activation = layer_.activation;
        act.up = up;
        act.up_bias = load_bias(stack.up.bias, batch.index, col0, cols, bias_buffer[0]);
        act.rows = rows;
        act.cols = cols;
        act.stride = cols;
        act.hidden = up;
        act.hidden_stride = cols;
        if (keeps_rows(stack)) {
            act.hidden_stride = hidden_stride(stack);
            act.hidden = reinterpret_cast<float*>(workspace_ + batch.hidden) + row0 * act.hidden_stride + col0;
        }
        if (stack.has_gate) {
            float* gate = up + plan_.tile_bytes / 8;  // the second half of the worker's tiles
            multiply(stack.gate, batch.prepared_x_gate, gate);
            act.gate = gate;
            act.gate_bias = load_bias(stack.gate.bias, batch.index, col0, cols, bias_buffer[1]);
        }
        layer_.elementwise->activate(act);
        if (keeps_rows(stack)) return;
        const MatrixView down = stack.down.packed.view(batch.index);
        stack.down.kernels->prepare({reinterpret_cast<const std::byte*>(up), DType::f32, cols * 4, rows,
                                     least(cols, columns_of(stack.up) - col0), row0, col0, batch.rows,
                                     columns_of(stack.up), workspace_ + batch.prepared_hidden, &down});
    }

    void prepare_rows(const Batch& batch, std::int64_t row, std::int64_t rows) const {
        const std::int64_t d_ff = columns_of(batch.stack->up), stride = hidden_stride(*batch.stack) * 4;
        const MatrixView down = batch.stack->down.packed.view(batch.index);
        std::byte* hidden = workspace_ + batch.hidden + row * stride;
        if (const TensorView* gamma = batch.stack->sub_norm)
            layer_.elementwise->normalize({reinterpret_cast<float*>(hidden), stride / 4, rows, d_ff, d_ff,
                                           batch.stack->sub_norm_eps,
                                           static_cast<const std::byte*>(gamma->data) +
                                               batch.index * gamma->strides[0] * element_bytes(gamma->dtype),
                                           gamma->dtype});
        batch.stack->down.kernels->prepare({hidden, DType::f32, stride, rows, d_ff, row, 0, batch.rows, d_ff,
                                            workspace_ + batch.prepared_hidden, &down});
    }

    // Output columns: down and bias of every batch into the sums, and y after the last wave.
    void run_output(std::int64_t task, int worker) const {
        const std::int64_t all_panels = divide_up(y_.cols, panel_columns);
        const std::int64_t first_panel = task * wave.slab_panels;
        const std::int64_t panels = least(wave.slab_panels, all_panels - first_panel);
        const std::int64_t col0 = first_panel * panel_columns, cols = panels * panel_columns;
        const SumsLayout layout(plan_.token_tile, all_panels);
        float* slab = sums() + first_panel * layout.panel_stride;
        if (is_first) start_sums(slab, layout, col0, panels);
        float bias_buffer[longest_run_panels * panel_columns];
        float* result = tile(worker);
        for (std::int64_t i = 0; i < wave.count; ++i) {
            const Batch& batch = wave.batches[i];
            const GroupedOperand& down = batch.stack->down;
            const float* bias = load_bias(down.bias, batch.index, col0, cols, bias_buffer);
            const std::int64_t room = plan_.tile_bytes / 4 / cols;
            const std::int64_t at_once = batch.rows <= room && batch.rows <= down.kernels->few_rows
                                             ? batch.rows
                                             : least(room / 16 * 16, largest_task_rows);
            for (std::int64_t row = 0; row < batch.rows; row += at_once) {
                const std::int64_t rows = least(at_once, batch.rows - row), pick = batch.first_pick + row;
                down.kernels->multiply({down.packed.view(batch.index), workspace_ + batch.prepared_hidden, batch.rows,
                                        row, rows, first_panel, panels, result, cols});
                layer_.elementwise->accumulate({result, cols, bias, picks_.tokens + pick,
                                                picks_.weights ? picks_.weights + pick : nullptr, rows, panels, slab,
                                                layout.token_stride, layout.panel_stride});
            }
        }
        if (is_last) store_sums(slab, layout, col0, panels);
    }

    void start_sums(float* slab, const SumsLayout& layout, std::int64_t col0, std::int64_t panels) const {
        const std::int64_t bytes = element_bytes(x_.dtype);
        for (std::int64_t p = 0; p < panels; ++p)
            for (std::int64_t t = 0; t < tokens; ++t) {
                float* sum = slab + p * layout.panel_stride + t * layout.token_stride;
                for (std::int64_t c = 0; c < panel_columns; ++c) sum[c] = 0;
            }
        if (routing_.x_scales) {
            for (std::int64_t t = 0; t < tokens; ++t) {
                const float scale = routing_.x_scales[first + t];
                if (scale == 0) continue;
                std::int64_t run = 0;
                const std::byte* src = x_.row(first + t, 1, &run) + col0 * bytes;
                const std::int64_t cols = least(panels * panel_columns, x_.cols - col0);
                for (std::int64_t c = 0; c < cols; ++c)
                    slab[c / panel_columns * layout.panel_stride + t * layout.token_stride + c % panel_columns] =
                        scale * load_f32(src + c * bytes, x_.dtype);
            }
        }
        for (std::int64_t v = 0; v < routing_.vector_count; ++v)
            for (std::int64_t t = 0; t < tokens; ++t) {
                const float scale = routing_.vector_scales[(first + t) * routing_.vector_count + v];
                if (scale == 0) continue;
                const float* src = routing_.vectors + v * routing_.vector_stride + col0;
                for (std::int64_t c = 0; c < panels * panel_columns; ++c)
                    slab[c / panel_columns * layout.panel_stride + t * layout.token_stride + c % panel_columns] +=
                        scale * src[c];
            }
    }

    void store_sums(const float* slab, const SumsLayout& layout, std::int64_t col0, std::int64_t panels) const {
        // Panels side by side are stored together.
        const std::int64_t together = layout.panel_stride == panel_columns ? panels : 1;
        for (std::int64_t p = 0; p < panels; p += together) {
            const std::int64_t col = col0 + p * panel_columns;
            for (std::int64_t t = 0; t < tokens;) {
                std::int64_t run = 0;
                std::byte* dst = y_.row(first + t, tokens - t, &run);
                layer_.elementwise->store({slab + p * layout.panel_stride + t * layout.token_stride,
                                           layout.token_stride, nullptr, run,
                                           least(together * panel_columns, y_.cols - col),
                                           dst + col * element_bytes(y_.dtype), y_.dtype, y_.row_stride()});
                t += run;
            }
        }
    }

    const GroupedLayer& layer_;
    const GroupedPlan& plan_;
    const GroupedRouting& routing_;
    const RowsView& x_;
    const RowsView& y_;
    std::byte* workspace_;
    const SortedPicks& picks_;
};

}  // namespace

void run_grouped(const GroupedLayer& layer, const GroupedPlan& plan, const GroupedRouting& routing, const RowsView& x,
                 const RowsView& y, std::byte* workspace) noexcept {
    SortedPicks picks;
    picks.tokens = reinterpret_cast<std::int32_t*>(workspace + plan.pick_tokens);
    if (routing.weights) picks.weights = reinterpret_cast<float*>(workspace + plan.pick_weights);
    if (routing.input_weights) picks.input_weights = reinterpret_cast<float*>(workspace + plan.pick_input_weights);
    picks.active = reinterpret_cast<ActiveGroup*>(workspace + plan.active);
    for (std::int64_t first = 0; first < plan.tokens; first += plan.token_tile) {
        WaveCall call(layer, plan, routing, x, y, workspace, picks);
        call.first = first;
        call.tokens = least(plan.token_tile, plan.tokens - first);
        call.wave.batches = reinterpret_cast<Batch*>(workspace + plan.batches);
        sort_picks(routing, layer.groups, first, call.tokens, reinterpret_cast<std::int64_t*>(workspace + plan.counts),
                   &picks);
        WaveStart start;
        do {
            call.is_first = start.active == 0 && start.pick == 0;
            if (!next_wave(layer, plan, picks, &start, &call.wave)) {
                // Nobody picked anything: only what y starts from.
                call.wave.hidden_tasks = 0;
                call.wave.slab_panels = longest_run_panels;
                call.wave.threads = 1;
            }
            call.is_last = start.active == picks.active_count;
            parallel_phases(
                call.wave.threads, WaveCall::phase_count, [&](std::int64_t phase) { return call.tasks(phase); },
                [&](std::int64_t phase, std::int64_t task, int worker) { call.run(phase, task, worker); });
        } while (!call.is_last);
    }
}

}  // namespace fastffn
