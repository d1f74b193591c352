// Tokens that stand on one node share its row: walked down by tiles, sorted by subtree, and summed by blocks of columns.
#include "core/parallel.hpp"
#include "layers/fff_tiles.hpp"

namespace fastffn {

namespace {

// What a task keeps in the second-level cache: x of a tile, and the records of a subtree. 96 to 768 KiB and 100 to 800 KiB
// were within 10 % of each other (Zen 4, 1 MiB of L2).
constexpr std::int64_t tile_bytes = 256 << 10;
constexpr std::int64_t subtree_bytes = 400 << 10;
constexpr std::int64_t smallest_tile = 16, largest_tile = 256, tiles_per_thread = 8;
// Tokens are sorted by at most this many levels: 4096 counters.
constexpr std::int64_t deepest_sort = 12;
// Columns that a chunk's tokens sum before the next ones: this part of every row of a subtree then stays in L1.
// 64 columns took 30 % longer, 256 and all of them as long.
constexpr std::int64_t block_columns = 128;
// Tokens in flight at once: bounds the workspace.
constexpr std::int64_t largest_span = 32768, largest_summed_span = 4096;
// y from this size on is written past the caches, which it would not stay in: 0.15 of 1.4 µs per token.
constexpr std::int64_t stream_bytes = 8 << 20;

class GroupedWalk : public TreeTiles {
  public:
    using TreeTiles::TreeTiles;

    // Per span and tree: the upper levels, the sort, the lower levels; at the end the conversion of summed trees.
    std::int64_t phases() const { return 3 * trees() + 1; }

    std::int64_t tasks(std::int64_t phase) const {
        const std::int64_t span = phase / phases(), step = phase % phases();
        const std::int64_t tiles = divide_up(tokens(span), plan_.tile);
        const bool sorts = plan_.sort_level < tree_.levels;
        if (step == 3 * trees()) return summed() ? tiles : 0;
        switch (step % 3) {
            case 0: return tiles;
            case 1: return sorts ? 1 : 0;
            default: return sorts ? most_chunks(tiles) : 0;
        }
    }
    // Two neighbouring chunks always hold more than half a tile.
    static std::int64_t most_chunks(std::int64_t tiles) { return 4 * tiles + 2; }

    void run(std::int64_t phase, std::int64_t task, int worker) const {
        const std::int64_t span = phase / phases(), step = phase % phases(), which = step / 3;
        if (step == 3 * trees()) return convert_sums(span, task);
        switch (step % 3) {
            case 0: return upper_levels(span, which, task, worker);
            case 1: return sort(span);
            default: return lower_levels(span, which, task, worker);
        }
    }

  private:
    bool summed() const { return plan_.sums >= 0; }
    std::int64_t summed_stride() const { return round_up(tree_.header.d_out, 16); }

    Scratch scratch(int worker) const {
        Scratch s;
        s.place(workspace_ + plan_.scratch + worker * plan_.scratch_bytes, plan_.tile, tree_.levels, plan_.z_stride,
                plan_.copy_x ? padded_cols() : 0);
        return s;
    }

    // x of the tokens that ids name (ids == nullptr: from `token` on).
    void take_x(const Scratch& s, std::int64_t token, const std::int32_t* ids, std::int64_t count) const {
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t index = token + (ids ? ids[i] : i);
            if (plan_.copy_x) {
                float* copy = s.copies + i * padded_cols();
                copy_row(index, copy);
                s.x[i] = copy;
            } else {
                s.x[i] = reinterpret_cast<const float*>(row_of(x_, index));
            }
        }
    }

    WalkTile grouped_tile(const Scratch& s, std::int64_t which) const {
        WalkTile tile;
        tile.tree = &tree_;
        tile.which = which;
        tile.kernels = call_.kernels;
        tile.x = s.x;
        tile.forced = call_.forced ? s.forced : nullptr;
        tile.node = s.node;
        tile.z = s.z;
        tile.z_stride = plan_.z_stride;
        tile.spare = s.spare;
        tile.gathered = s.gathered;
        tile.dots = s.dots;
        return tile;
    }

    void upper_levels(std::int64_t span, std::int64_t which, std::int64_t task, int worker) const {
        const std::int64_t begin = task * plan_.tile, count = least(plan_.tile, tokens(span) - begin);
        const std::int64_t token = first(span) + begin;
        const Scratch s = scratch(worker);
        WalkTile tile = grouped_tile(s, which);
        const bool all_levels = plan_.sort_level >= tree_.levels;
        if (!all_levels) {
            tile.node = at<std::int32_t>(plan_.node) + begin;
            tile.z = at<float>(plan_.z) + begin * plan_.z_stride;
        }
        const std::int64_t next = begin + plan_.threads * plan_.tile;
        if (next < tokens(span)) {
            look_ahead(s, count, first(span) + next, nullptr, least(plan_.tile, tokens(span) - next));
            tile.ahead = s.ahead;
            tile.ahead_gathered = s.ahead_gathered;
            tile.ahead_bytes = ahead_part(plan_.sort_level > 0 ? plan_.sort_level : 1);
        }
        take_x(s, token, nullptr, count);
        for (std::int64_t i = 0; i < count; ++i) {
            s.order[i] = static_cast<std::int32_t>(i);
            tile.node[i] = 1;
            if (call_.forced) s.forced[i] = call_.forced[(token + i) * trees() + which];
        }
        walk_sorted(tile, s.order, count, 0, plan_.sort_level);
        if (all_levels) finish_tile(s, which, token, nullptr, count, false);
    }

    // Tokens by the node they stand on, and cut into chunks of whole subtrees where those are small.
    void sort(std::int64_t span) const {
        const std::int64_t count = tokens(span), groups = std::int64_t{1} << plan_.sort_level;
        const std::int32_t* node = at<std::int32_t>(plan_.node);
        std::int32_t* counts = at<std::int32_t>(plan_.counts);
        std::int32_t* order = at<std::int32_t>(plan_.order);
        std::memset(counts, 0, static_cast<std::size_t>(groups + 1) * 4);
        for (std::int64_t i = 0; i < count; ++i) ++counts[node[i] - groups + 1];
        for (std::int64_t g = 0; g < groups; ++g) counts[g + 1] += counts[g];
        std::int32_t* chunks = at<std::int32_t>(plan_.chunks);  // how many, and where each begins; then the end
        chunks[0] = 0;
        std::int64_t open = 0;
        auto close = [&](std::int64_t end) {
            if (end == open) return;
            chunks[++chunks[0]] = static_cast<std::int32_t>(open);
            open = end;
        };
        for (std::int64_t g = 0; g < groups; ++g) {
            const std::int64_t begin = counts[g], end = counts[g + 1];
            if (end - open > plan_.tile) close(begin);
            const std::int64_t pieces = divide_up(end - begin, plan_.tile);
            for (std::int64_t piece = 1; piece < pieces; ++piece) close(begin + (end - begin) * piece / pieces);
            if (pieces > 1) close(end);
        }
        close(count);
        chunks[chunks[0] + 1] = static_cast<std::int32_t>(count);
        for (std::int64_t i = 0; i < count; ++i) order[counts[node[i] - groups]++] = static_cast<std::int32_t>(i);
    }

    void lower_levels(std::int64_t span, std::int64_t which, std::int64_t task, int worker) const {
        const std::int32_t* chunks = at<std::int32_t>(plan_.chunks);
        if (task >= chunks[0]) return;  // there may be more, and the number of tasks is fixed beforehand
        const std::int64_t begin = chunks[task + 1], count = chunks[task + 2] - begin;
        const std::int32_t* ids = at<std::int32_t>(plan_.order) + begin;
        const std::int32_t* node = at<std::int32_t>(plan_.node);
        const Scratch s = scratch(worker);
        const WalkTile tile = grouped_tile(s, which);
        take_x(s, first(span), ids, count);
        for (std::int64_t i = 0; i < count; ++i) {
            s.order[i] = static_cast<std::int32_t>(i);
            s.node[i] = node[ids[i]];
            std::memcpy(s.z + i * plan_.z_stride, at<float>(plan_.z) + ids[i] * plan_.z_stride,
                        static_cast<std::size_t>(plan_.sort_level) * 4);
            if (call_.forced) s.forced[i] = call_.forced[(first(span) + ids[i]) * trees() + which];
        }
        for (std::int64_t i = 0; i < count;) {
            std::int64_t end = i + 1;
            while (end < count && s.node[end] == s.node[i]) ++end;
            walk_sorted(tile, s.order + i, end - i, plan_.sort_level, tree_.levels);
            i = end;
        }
        const std::int64_t next = task + plan_.threads;
        const bool has_ahead = next < chunks[0];
        if (has_ahead)
            look_ahead(s, count, first(span), at<std::int32_t>(plan_.order) + chunks[next + 1],
                       chunks[next + 2] - chunks[next + 1]);
        finish_tile(s, which, first(span), ids, count, has_ahead);
    }

    // x of the tokens that this worker will most likely take next, to be fetched while it works on these.
    std::int64_t ahead_part(std::int64_t parts) const {
        return round_up(divide_up(x_.cols * element_bytes(x_.dtype), parts), 64);
    }
    void look_ahead(const Scratch& s, std::int64_t count, std::int64_t token, const std::int32_t* ids,
                    std::int64_t next_count) const {
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t next = i < next_count ? i : next_count - 1;
            s.ahead[i] = row_of(x_, token + (ids ? ids[next] : next));
        }
    }

    void finish_tile(const Scratch& s, std::int64_t which, std::int64_t token, const std::int32_t* ids,
                     std::int64_t count, bool has_ahead) const {
        for (std::int64_t i = 0; i < count; ++i)
            route_result((token + (ids ? ids[i] : i)) * trees() + which, which, s.node[i], s.z + i * plan_.z_stride);
        if (!call_.sums) return;
        for (std::int64_t i = 0; i < count; ++i)
            std::memcpy(s.coefficients + i * plan_.z_stride, s.z + s.order[i] * plan_.z_stride,
                        static_cast<std::size_t>(plan_.z_stride) * 4);
        activate(s.coefficients, s.coefficients, count);
        Term* terms = s.terms;
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int32_t local = s.order[i];
            const std::int64_t index = token + (ids ? ids[local] : local);
            s.begin[i] = static_cast<std::int32_t>(terms - s.terms);
            terms = add_terms(which, s.node[local], s.coefficients + i * plan_.z_stride, terms);
            s.y[i] = summed()
                         ? reinterpret_cast<std::byte*>(at<float>(plan_.sums) + index % plan_.span * summed_stride())
                         : row_of(y_, index);
        }
        s.begin[count] = static_cast<std::int32_t>(terms - s.terms);
        const std::int64_t d_out = tree_.header.d_out;
        const std::int64_t blocks = divide_up(d_out, block_columns), part = ahead_part(blocks);
        for (std::int64_t block = 0; block < blocks; ++block) {
            const std::int64_t col = block * block_columns;
            sum_rows()({s.terms, s.begin, s.y, summed() ? DType::f32 : y_.dtype, count, col,
                        least(block_columns, d_out - col), which > 0, plan_.stream && which + 1 == trees(),
                        has_ahead ? s.ahead : nullptr, part});
            if (has_ahead)
                for (std::int64_t i = 0; i < count; ++i) s.ahead[i] += part;
        }
    }

    void convert_sums(std::int64_t span, std::int64_t task) const {
        const std::int64_t begin = task * plan_.tile, count = least(plan_.tile, tokens(span) - begin);
        for (std::int64_t i = begin; i < begin + count; ++i)
            call_.elementwise->store({at<float>(plan_.sums) + i * summed_stride(), summed_stride(), nullptr, 1,
                                      tree_.header.d_out, row_of(y_, first(span) + i), y_.dtype, 0});
    }
};

}  // namespace

void plan_grouped_walk(const TreeCall& call, const RowsView& x, DType y_dtype, TreePlan* plan) {
    const PackedTree& tree = call.tree;
    const std::int64_t padded_cols = round_up(x.cols, 16);
    // Loads across cache lines cost a quarter of a walk; a copy costs the time of one level.
    const bool aligned = reinterpret_cast<std::uintptr_t>(x.data) % 64 == 0 && (x.dims > 1 || x.row_stride() % 64 == 0);
    plan->copy_x = plan->copy_x || !aligned;
    plan->tile = tile_bytes / (padded_cols * 4) / 16 * 16;
    if (plan->tile > largest_tile) plan->tile = largest_tile;
    // Several tiles per thread, so that one slow thread leaves little to wait for.
    const std::int64_t share = divide_up(x.rows, tiles_per_thread * plan->threads);
    if (plan->threads > 1 && plan->tile > share) plan->tile = share;
    if (plan->tile < smallest_tile) plan->tile = smallest_tile;
    std::int64_t below = 0;  // levels of a subtree that fits
    while (below < tree.levels && ((std::int64_t{2} << below) - 1) * tree.header.record_bytes <= subtree_bytes) ++below;
    plan->sort_level = tree.levels - below;
    if (plan->sort_level <= 0) plan->sort_level = tree.levels;
    else if (plan->sort_level > deepest_sort) plan->sort_level = deepest_sort;
    const bool sums = call.sums && tree.header.trees > 1 && y_dtype != DType::f32;
    plan->stream = !sums && x.rows * tree.header.d_out * 4 >= stream_bytes;
    plan->span = least(x.rows, sums ? largest_summed_span : largest_span);
    if (plan->sort_level < tree.levels) {
        plan->z = plan->take(plan->span * plan->z_stride * 4);
        plan->node = plan->take(plan->span * 4);
        plan->order = plan->take(plan->span * 4);
        plan->chunks = plan->take((GroupedWalk::most_chunks(divide_up(plan->span, plan->tile)) + 2) * 4);
        plan->counts = plan->take(((std::int64_t{1} << plan->sort_level) + 1) * 4);
    }
    if (sums) plan->sums = plan->take(plan->span * round_up(tree.header.d_out, 16) * 4);
    Scratch measure;
    plan->scratch_bytes =
        measure.place(nullptr, plan->tile, tree.levels, plan->z_stride, plan->copy_x ? padded_cols : 0);
    plan->scratch = plan->take(plan->scratch_bytes * plan->threads);
}

void run_grouped_walk(const TreeCall& call, const TreePlan& plan, const RowsView& x, const RowsView& y,
                      std::byte* workspace) noexcept {
    const GroupedWalk tiles(call, plan, x, y, workspace);
    parallel_phases(
        plan.threads, tiles.spans() * tiles.phases(), [&](std::int64_t phase) { return tiles.tasks(phase); },
        [&](std::int64_t phase, std::int64_t task, int worker) { tiles.run(phase, task, worker); });
}

}  // namespace fastffn
