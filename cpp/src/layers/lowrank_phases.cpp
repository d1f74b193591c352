// Few tokens: products one after the other, each cut into tasks for all workers.
#include "core/parallel.hpp"
#include "layers/lowrank_pieces.hpp"

namespace fastffn {

namespace {

// Few rows: tasks per worker, at most. Runs of panels should be long, as a block of u holds only 8 KiB of each (bf16) and what
// is fetched ahead of a run's end belongs to another worker: 768×3072 of rank 384, one token, two threads: 24 tasks of a panel
// of 107 GB/s, two per worker 117.
constexpr std::int64_t most_tasks_per_worker = 2;
// With many rows tasks are larger, as they share weights in the cache; below this many per worker they are cut further.
constexpr std::int64_t fewest_tasks = 3;
// Preparing runs at 10 to 20 GB/s of f32: less than this is a few microseconds, one task.
constexpr std::int64_t serial_prepare_bytes = 64 << 10;

// A product's tasks: groups of panels × chunks of rows.
struct Split {
    std::int64_t panels, panels_per_task, rows, rows_per_task;
    std::int64_t row_tasks() const { return divide_up(rows, rows_per_task); }
    std::int64_t tasks() const { return divide_up(panels, panels_per_task) * row_tasks(); }
    std::int64_t panel(std::int64_t task) const { return task / row_tasks() * panels_per_task; }
    std::int64_t panel_count(std::int64_t task) const { return least(panels_per_task, panels - panel(task)); }
    std::int64_t row(std::int64_t task) const { return task % row_tasks() * rows_per_task; }
    std::int64_t row_count(std::int64_t task) const { return least(rows_per_task, rows - row(task)); }
};

Split split(std::int64_t panels, std::int64_t rows, const FormatKernels& kernels, int threads) {
    Split s{panels, 1, rows, rows};
    if (rows <= kernels.few_rows) {
        // As many tasks per worker as leave none of them waiting longer than one task each would.
        std::int64_t shortest = 0;
        for (std::int64_t each = 1; each <= most_tasks_per_worker; ++each) {
            const std::int64_t run = least(divide_up(panels, threads * each), longest_low_rank_run);
            const std::int64_t waits = divide_up(divide_up(panels, run), threads) * run;
            if (shortest == 0 || waits <= shortest) {
                shortest = waits;
                s.panels_per_task = run;
            }
        }
        return s;
    }
    s.panels_per_task = kernels.block_panels;
    s.rows_per_task = low_rank_rows;
    const std::int64_t wanted = threads > 1 ? threads * fewest_tasks : 1;
    if (s.tasks() < wanted && rows > low_rank_rows / 2) s.rows_per_task = low_rank_rows / 2;
    while (s.tasks() < wanted && s.panels_per_task > 1) s.panels_per_task /= 2;
    return s;
}

class PhasedTile {
  public:
    enum Phase : std::int64_t {
        prepare_x,
        project_x,
        prepare_p,
        hidden,
        project_hidden,
        prepare_s,
        output,
        phase_count
    };

    PhasedTile(const LowRankLayer& layer, const LowRankPlan& plan, const RowsView& x, const RowsView& y,
               std::byte* workspace)
        : layer_(layer), plan_(plan), x_(x), workspace_(workspace), tile_(layer, plan, x, y, workspace, 0) {}

    std::int64_t tasks(std::int64_t phase) const {
        switch (phase) {
            case prepare_x: return row_tasks(x_.cols) * (own_x(slot_gate) ? 2 : 1);
            case project_x: return projection_tasks(slot_up) + projection_tasks(slot_gate);
            case prepare_p: return whole_rows(slot_up) + whole_rows(slot_gate);
            case hidden: return layer_.has_hidden ? hidden_split().tasks() : 0;
            case project_hidden: return projection(slot_down).tasks();
            case prepare_s: return whole_rows(slot_down);
            default: return lift().tasks();
        }
    }

    void run(std::int64_t phase, std::int64_t task, int worker) const {
        float* tile = reinterpret_cast<float*>(workspace_ + plan_.tiles + worker * plan_.worker_bytes);
        switch (phase) {
            case prepare_x: {
                const std::int64_t own = row_tasks(x_.cols);
                const int slot = !layer_.has_hidden ? slot_down : task < own ? slot_up : slot_gate;
                return run_prepare_x(slot, task % own);
            }
            case project_x: {
                const std::int64_t own = projection_tasks(slot_up);
                return task < own ? run_project(slot_up, task, tile) : run_project(slot_gate, task - own, tile);
            }
            case prepare_p: {
                const std::int64_t own = whole_rows(slot_up);
                return task < own ? run_prepare_sums(slot_up, task) : run_prepare_sums(slot_gate, task - own);
            }
            case hidden: {
                const Split s = hidden_split();
                if (tile_.used_block(slot_down, s.panel(task)) != s.panel(task)) return;
                return tile_.hidden_block(s.panel(task), s.row(task), s.row_count(task), tile);
            }
            case project_hidden: return run_project(slot_down, task, tile);
            case prepare_s: return run_prepare_sums(slot_down, task);
            default: {
                const Split s = lift();
                return tile_.output(s.row(task), s.row_count(task), s.panel(task), s.panel_count(task), tile);
            }
        }
    }

  private:
    bool exists(int slot) const {
        return slot == slot_down || (layer_.has_hidden && (slot == slot_up || layer_.has_gate));
    }
    bool own_x(int slot) const { return exists(slot) && (slot != slot_gate || !(layer_.shared || layer_.shared_x)); }
    bool projects(int slot) const {
        return exists(slot) && tile_.operand(slot).pair && (slot != slot_gate || !layer_.shared);
    }
    // Rows per task of preparing: few where little is to do, else blocks of 16.
    std::int64_t row_chunk(std::int64_t cols) const {
        return tile_.rows() * cols * 4 < serial_prepare_bytes ? tile_.rows() : 16;
    }
    std::int64_t row_tasks(std::int64_t cols) const { return divide_up(tile_.rows(), row_chunk(cols)); }

    Split projection(int slot) const {
        const LowRankOperand& op = tile_.operand(slot);
        return split(divide_up(op.view.rank, panel_columns), tile_.rows(), *op.kernels, plan_.threads);
    }
    std::int64_t projection_tasks(int slot) const { return projects(slot) ? projection(slot).tasks() : 0; }
    std::int64_t whole_rows(int slot) const {
        const LowRankOperand& op = tile_.operand(slot);
        return projects(slot) && op.kernels->whole_rows ? row_tasks(op.view.rank) : 0;
    }
    Split hidden_split() const {  // a "panel" is a block of down's u
        Split s{layer_.down.view.blocks(), 1, tile_.rows(), tile_.rows()};
        if (tile_.rows() <= layer_.down.kernels->few_rows) return s;
        s.rows_per_task = low_rank_rows;
        if (plan_.threads > 1 && s.tasks() < plan_.threads * fewest_tasks) s.rows_per_task = low_rank_rows / 2;
        return s;
    }
    Split lift() const {
        return split(panels_of(layer_.down.outer), tile_.rows(), *layer_.down.kernels, plan_.threads);
    }

    void run_prepare_x(int slot, std::int64_t task) const {
        const LowRankOperand& op = tile_.operand(slot);
        const std::int64_t row0 = task * row_chunk(x_.cols), rows = least(row_chunk(x_.cols), tile_.rows() - row0);
        if (!op.pair) return tile_.prepare_x_rows(slot, row0, rows);
        for (std::int64_t block = 0; block < op.view.blocks(); ++block) tile_.prepare_x_block(slot, block, row0, rows);
    }

    void run_project(int slot, std::int64_t task, float* scratch) const {
        const LowRankOperand& op = tile_.operand(slot);
        const Split s = projection(slot);
        const std::int64_t row = s.row(task), rows = s.row_count(task), panel = s.panel(task);
        const std::int64_t panels = s.panel_count(task);
        for (std::int64_t block = tile_.used_block(slot, 0); block < op.view.blocks();
             block = tile_.used_block(slot, block + 1))
            tile_.add_block(slot, block, row, rows, panel, panels, scratch);
        if (!op.kernels->whole_rows) tile_.prepare_sums(slot, row, rows, panel, panels);
    }

    void run_prepare_sums(int slot, std::int64_t task) const {
        const LowRankOperand& op = tile_.operand(slot);
        const std::int64_t row0 = task * row_chunk(op.view.rank);
        tile_.prepare_sums(slot, row0, least(row_chunk(op.view.rank), tile_.rows() - row0), 0,
                           divide_up(op.view.rank, panel_columns));
    }

    const LowRankLayer& layer_;
    const LowRankPlan& plan_;
    const RowsView& x_;
    std::byte* workspace_;
    LowRankTile tile_;
};

}  // namespace

void run_low_rank_phases(const LowRankLayer& layer, const LowRankPlan& plan, const RowsView& x, const RowsView& y,
                         std::byte* workspace) noexcept {
    const PhasedTile tile(layer, plan, x, y, workspace);
    parallel_phases(
        plan.threads, PhasedTile::phase_count, [&](std::int64_t phase) { return tile.tasks(phase); },
        [&](std::int64_t phase, std::int64_t task, int worker) { tile.run(phase, task, worker); });
}

}  // namespace fastffn
