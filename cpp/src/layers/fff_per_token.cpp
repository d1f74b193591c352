// Every token walks on its own: few tokens, or trees so small that nothing is gained by sorting.
#include "core/parallel.hpp"
#include "layers/fff_tiles.hpp"

namespace fastffn {

namespace {

// Walkers of a task: two rounds of dots_at_once.
constexpr std::int64_t walkers_per_task = 8;
constexpr std::int64_t finish_tokens = 4;
// Tokens in flight at once: bounds the workspace.
constexpr std::int64_t largest_span = 512;

class PerToken : public TreeTiles {
  public:
    using TreeTiles::TreeTiles;

    // Per span: copy x where it must be, walk, sum.
    static constexpr std::int64_t phases = 3;

    std::int64_t tasks(std::int64_t phase) const {
        const std::int64_t in_span = tokens(phase / phases);
        switch (phase % phases) {
            case 0: return plan_.copy_x ? divide_up(in_span, finish_tokens) : 0;
            case 1: return divide_up(in_span * trees(), walkers_per_task);
            default: return call_.sums ? divide_up(in_span, finish_tokens) * plan_.column_tasks : 0;
        }
    }

    void run(std::int64_t phase, std::int64_t task, int worker) const {
        const std::int64_t span = phase / phases;
        if (phase % phases == 0) {
            const std::int64_t begin = task * finish_tokens, end = least(begin + finish_tokens, tokens(span));
            for (std::int64_t i = begin; i < end; ++i) copy_row(first(span) + i, copied(i));
        } else if (phase % phases == 1) {
            walk(span, task);
        } else {
            finish(span, task, worker);
        }
    }

  private:
    float* copied(std::int64_t token) const { return at<float>(plan_.x_copy) + token * padded_cols(); }

    Scratch scratch(int worker) const {
        Scratch s;
        s.place(workspace_ + plan_.scratch + worker * plan_.scratch_bytes, 1, tree_.levels * trees(),
                plan_.z_stride * trees(), 0);
        return s;
    }

    void walk(std::int64_t span, std::int64_t task) const {
        const std::int64_t begin = task * walkers_per_task;
        const std::int64_t walkers = least(walkers_per_task, tokens(span) * trees() - begin);
        const float* x[walkers_per_task];
        std::int32_t order[walkers_per_task] = {};
        WalkTile tile;
        tile.tree = &tree_;
        tile.which = begin % trees();
        tile.interleaved = trees();
        tile.kernels = call_.kernels;
        tile.x = x;
        tile.node = at<std::int32_t>(plan_.node) + begin;
        tile.z = at<float>(plan_.z) + begin * plan_.z_stride;
        tile.z_stride = plan_.z_stride;
        if (call_.forced) tile.forced = call_.forced + first(span) * trees() + begin;
        if (call_.sums) tile.prefetch_bytes = tree_.header.d_out * format_bytes(tree_.format());
        for (std::int64_t i = 0; i < walkers; ++i) {
            const std::int64_t token = (begin + i) / trees();
            x[i] = plan_.copy_x ? copied(token) : reinterpret_cast<const float*>(row_of(x_, first(span) + token));
            order[i] = static_cast<std::int32_t>(i);
            tile.node[i] = 1;
        }
        walk_each(tile, order, walkers, 0, tree_.levels);
        for (std::int64_t i = 0; i < walkers; ++i)
            route_result((first(span) + (begin + i) / trees()) * trees() + (begin + i) % trees(), (begin + i) % trees(),
                         tile.node[i], tile.z + i * tile.z_stride);
    }

    void finish(std::int64_t span, std::int64_t task, int worker) const {
        const std::int64_t part = task % plan_.column_tasks, begin = task / plan_.column_tasks * finish_tokens;
        const std::int64_t end = least(begin + finish_tokens, tokens(span)), d_out = tree_.header.d_out;
        const std::int64_t cols = round_up(divide_up(d_out, plan_.column_tasks), 16), col0 = part * cols;
        if (col0 >= d_out) return;
        const Scratch s = scratch(worker);
        for (std::int64_t i = begin; i < end; ++i) {
            const std::int32_t* node = at<std::int32_t>(plan_.node) + i * trees();
            activate(at<float>(plan_.z) + i * trees() * plan_.z_stride, s.coefficients, trees());
            Term* terms = s.terms;
            for (std::int64_t k = 0; k < trees(); ++k)
                terms = add_terms(k, node[k], s.coefficients + k * plan_.z_stride, terms);
            s.begin[0] = 0;
            s.begin[1] = static_cast<std::int32_t>(terms - s.terms);
            std::byte* y = row_of(y_, first(span) + i);
            sum_rows()({s.terms, s.begin, &y, y_.dtype, 1, col0, least(cols, d_out - col0), false, false, nullptr, 0});
        }
    }
};

}  // namespace

void plan_per_token(const TreeCall& call, const RowsView& x, TreePlan* plan) {
    const PackedTree& tree = call.tree;
    const std::int64_t trees = tree.header.trees;
    plan->span = least(x.rows, largest_span);
    plan->z = plan->take(plan->span * trees * plan->z_stride * 4);
    plan->node = plan->take(plan->span * trees * 4);
    if (plan->copy_x) plan->x_copy = plan->take(plan->span * round_up(x.cols, 16) * 4);
    // Where tokens make too few tasks, several share a token's sum, by columns.
    const std::int64_t finish_tasks = divide_up(plan->span, finish_tokens);
    if (call.sums && plan->threads > 1 && finish_tasks < 2 * plan->threads)
        plan->column_tasks = least(divide_up(2 * plan->threads, finish_tasks), divide_up(tree.header.d_out, 64));
    Scratch measure;
    plan->scratch_bytes = measure.place(nullptr, 1, tree.levels * trees, plan->z_stride * trees, 0);
    plan->scratch = plan->take(plan->scratch_bytes * plan->threads);
}

void run_per_token(const TreeCall& call, const TreePlan& plan, const RowsView& x, const RowsView& y,
                   std::byte* workspace) noexcept {
    const PerToken tiles(call, plan, x, y, workspace);
    parallel_phases(
        plan.threads, tiles.spans() * PerToken::phases, [&](std::int64_t phase) { return tiles.tasks(phase); },
        [&](std::int64_t phase, std::int64_t task, int worker) { tiles.run(phase, task, worker); });
}

}  // namespace fastffn
