#include "layers/grouped_wave.hpp"

namespace fastffn {

namespace {

// Tasks per worker: enough that one slow worker leaves little to wait for.
constexpr std::int64_t tasks_per_worker = 12;
// Rows are split where columns make too few tasks; eight blocks of rows still share a chunk of weights.
constexpr std::int64_t smallest_row_split = 48;
// Work is counted in bytes of weights, FLOP at a 16th of a byte each. A task below this costs more to hand out than to do
// elsewhere; below the other one thread is faster than waking a second.
constexpr std::int64_t smallest_task_work = 16 << 10, serial_work = 192 << 10;

// A wave of several groups ends here, though there may be room: every output task reads the wave's hidden rows again, about a
// third of these bytes, and they should still lie in L2. On Zen 4 (1 MiB of L2 and a fast L3) 1.6 MB to 12 MB differ by
// 3 %, in favour of the small ones.
constexpr std::int64_t usual_wave = 3200000;

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
std::int64_t most(std::int64_t a, std::int64_t b) { return a > b ? a : b; }

std::int64_t work_of(const GroupedOperand& operand, std::int64_t rows) {
    const PackedHeader& header = operand.packed.header;
    return header.matrix_bytes + header.out_features * header.in_features / 8 * rows;
}

std::int64_t hidden_work(const Batch& batch) {
    const GroupStack& stack = *batch.stack;
    return work_of(stack.up, batch.rows) + (stack.has_gate ? work_of(stack.gate, batch.rows) : 0);
}

// Room of the wave under construction.
struct Used {
    std::int64_t x = 0, x_gate = 0, prepared_hidden = 0, hidden = 0;

    std::int64_t total() const { return x + x_gate + prepared_hidden + hidden; }
    bool fits(const GroupedPlan& plan) const {
        return x <= plan.prepared_x_bytes && x_gate <= plan.prepared_x_gate_bytes &&
               prepared_hidden <= plan.prepared_hidden_bytes && hidden <= plan.hidden_bytes;
    }
};

Used with(const Used& used, const GroupStack& stack, std::int64_t rows) {
    auto bytes = [rows](const GroupedOperand& operand) {
        return round_up(operand.kernels->prepared_bytes(rows, operand.packed.view()), 64);
    };
    Used sum = used;
    sum.x += bytes(stack.up);
    if (two_forms(stack)) sum.x_gate += bytes(stack.gate);
    sum.prepared_hidden += bytes(stack.down);
    if (keeps_rows(stack)) sum.hidden += rows * hidden_stride(stack) * 4;
    return sum;
}

// Rows of the next batch of a group that has `left` of them: all, or nearly equal parts of at most what a wave holds.
std::int64_t rows_of_part(const GroupedPlan& plan, const GroupStack& stack, std::int64_t left) {
    std::int64_t largest = least(left, plan.largest_rows);
    while (largest > 1 && !with({}, stack, largest).fits(plan))
        largest = largest > 16 ? (largest - 1) / 16 * 16 : largest - 1;
    if (largest == left) return left;
    return least(round_up(divide_up(left, divide_up(left, largest)), 16), largest);
}

void split_hidden(const GroupedPlan& plan, Wave* wave) {
    std::int64_t work = 0;
    for (std::int64_t i = 0; i < wave->count; ++i) work += hidden_work(wave->batches[i]);
    const std::int64_t target = most(work / (wave->threads * tasks_per_worker), smallest_task_work);
    const std::int64_t tile_floats = plan.tile_bytes / 4 / 2;
    std::int64_t next = 0, bundle_work = 0;
    Batch* bundle = nullptr;
    for (std::int64_t i = 0; i < wave->count; ++i) {
        Batch& batch = wave->batches[i];
        const FormatKernels& kernels = *batch.stack->up.kernels;
        const FormatKernels& gate = batch.stack->has_gate ? *batch.stack->gate.kernels : kernels;
        const std::int64_t panels = divide_up(batch.stack->up.packed.header.out_features, panel_columns);
        const std::int64_t own_work = hidden_work(batch), panel_work = most(own_work / panels, 1);
        const bool few = batch.rows <= kernels.few_rows && batch.rows <= gate.few_rows;
        const std::int64_t block = most(kernels.block_panels, gate.block_panels);
        const std::int64_t task_rows = few ? batch.rows : round_up(least(batch.rows, largest_task_rows), 16);
        std::int64_t per_task = least(target / panel_work, tile_floats / (task_rows * panel_columns));
        per_task = least(per_task, longest_run_panels);
        per_task = most(per_task, 1);
        if (few) per_task = divide_up(panels, divide_up(panels, per_task));  // nearly equal tasks
        else per_task = round_up(divide_up(panels, divide_up(panels, most(per_task / block, 1) * block)), block);
        batch.panels_per_task = per_task;
        batch.row_splits = 1;
        if (!few) {
            batch.row_splits = divide_up(batch.rows, largest_task_rows);
            if (wave->threads > 1) {
                const std::int64_t wanted = divide_up(panel_work * batch.panels_per_task, target);
                batch.row_splits = most(batch.row_splits, least(wanted, batch.rows / smallest_row_split));
            }
        }
        batch.rows_per_split = few ? batch.rows : round_up(divide_up(batch.rows, batch.row_splits), 16);
        batch.row_splits = divide_up(batch.rows, batch.rows_per_split);
        const std::int64_t tasks = divide_up(panels, batch.panels_per_task) * batch.row_splits;
        batch.bundle = 1;
        batch.first_task = next;
        if (bundle && tasks == 1 && bundle_work + own_work <= target) {
            ++bundle->bundle;
            bundle_work += own_work;
            continue;
        }
        next += tasks;
        bundle = tasks == 1 ? &batch : nullptr;
        bundle_work = own_work;
    }
    wave->hidden_tasks = next;
}

void split_output(const GroupedPlan& plan, Wave* wave) {
    std::int64_t work = 0, block = 1;
    bool few = true;
    for (std::int64_t i = 0; i < wave->count; ++i) {
        const Batch& batch = wave->batches[i];
        const GroupedOperand& down = batch.stack->down;
        work += work_of(down, batch.rows);
        if (batch.rows <= down.kernels->few_rows) continue;
        few = false;
        block = most(block, down.kernels->block_panels);
    }
    const std::int64_t panels = divide_up(wave->batches[0].stack->down.packed.header.out_features, panel_columns);
    const std::int64_t target = most(work / (wave->threads * tasks_per_worker), smallest_task_work);
    std::int64_t slab = least(target / most(work / panels, 1), longest_run_panels);
    if (!few) {
        // Whole blocks of columns, unless those would be too few for the workers; and a tile of 16 rows at least.
        slab = most(slab / block, 1) * block;
        if (divide_up(panels, slab) < 2 * wave->threads) slab = panels / (2 * wave->threads);
    }
    slab = least(slab, plan.tile_bytes / 4 / (16 * panel_columns));
    wave->slab_panels = most(slab, 1);
}

}  // namespace

bool two_forms(const GroupStack& stack) noexcept {
    return stack.has_gate &&
           !rows_serve_both(*stack.gate.kernels, stack.gate.packed.view(), *stack.up.kernels, stack.up.packed.view());
}

bool keeps_rows(const GroupStack& stack) noexcept { return stack.down.kernels->whole_rows || stack.sub_norm; }

std::int64_t hidden_stride(const GroupStack& stack) noexcept {
    // Never a power of two: spreads cache sets.
    return round_up(stack.up.packed.header.out_features, panel_columns) + panel_columns;
}

bool next_wave(const GroupedLayer& layer, const GroupedPlan& plan, const SortedPicks& picks, WaveStart* start,
               Wave* wave) noexcept {
    wave->count = 0;
    wave->padded_rows = 0;
    wave->keeps_rows = false;
    const GroupStack* stack = layer.stacks;
    Used used;
    std::int64_t work = 0;
    while (start->active < picks.active_count && wave->count < plan.largest_batches) {
        const ActiveGroup& active = picks.active[start->active];
        while (active.group >= stack->first_group + stack->groups()) ++stack;
        const std::int64_t rows = rows_of_part(plan, *stack, active.count - start->pick);
        const Used more = with(used, *stack, rows);
        if (wave->count && (!more.fits(plan) || more.total() > usual_wave)) break;
        Batch& batch = wave->batches[wave->count++];
        batch = {};
        batch.stack = stack;
        batch.index = active.group - stack->first_group;
        batch.first_pick = active.first + start->pick;
        batch.rows = rows;
        batch.padded_row = wave->padded_rows;
        batch.prepared_x = plan.prepared_x + used.x;
        batch.prepared_x_gate = two_forms(*stack) ? plan.prepared_x_gate + used.x_gate : batch.prepared_x;
        batch.prepared_hidden = plan.prepared_hidden + used.prepared_hidden;
        batch.hidden = plan.hidden + used.hidden;
        wave->padded_rows += round_up(rows, 16);
        wave->keeps_rows = wave->keeps_rows || keeps_rows(*stack);
        work += hidden_work(batch) + work_of(stack->down, rows);
        used = more;
        start->pick += rows;
        if (start->pick == active.count) {
            ++start->active;
            start->pick = 0;
        }
    }
    if (wave->count == 0) return false;
    wave->threads = work < serial_work ? 1 : plan.threads;
    // Preparing runs at 10 to 20 GB/s: four tasks per worker balance it, and 16 rows are some microseconds.
    wave->rows_per_prepare = round_up(divide_up(wave->padded_rows, wave->threads * 4), 16);
    split_hidden(plan, wave);
    split_output(plan, wave);
    return true;
}

}  // namespace fastffn
