#include "layers/fff_engine.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include "core/convert.hpp"
#include "core/parallel.hpp"

namespace fastffn {

namespace {

// Rows that tasks of the grouped plan keep in the second-level cache: x of a tile, and the records of a subtree.
constexpr std::int64_t tile_bytes = 384 << 10;
constexpr std::int64_t subtree_bytes = 400 << 10;
constexpr std::int64_t largest_tile = 256;
// Tokens are sorted by at most this many levels: 4096 counters.
constexpr std::int64_t deepest_sort = 12;
// Columns that a chunk's tokens sum before the next ones: the block of every row of a subtree then stays in L1.
constexpr std::int64_t block_columns = 128;
// Walkers of a per-token task: two rounds of dots_at_once.
constexpr std::int64_t walkers_per_task = 8;
constexpr std::int64_t finish_tokens = 4;
// In flight at once: bounds the workspace of calls with very many tokens.
constexpr std::int64_t per_token_span = 512, grouped_span = 32768, summed_span = 4096;
// Waking a second thread costs a few microseconds: below this many bytes of rows one thread is faster.
constexpr std::int64_t serial_bytes = 192 << 10;

std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

std::byte* row_of(const RowsView& rows, std::int64_t index) {
    if (rows.dims == 1) return rows.data + index * rows.row_stride();
    std::int64_t run = 0;
    return rows.row(index, 1, &run);
}

// A row as f32, zero padded to a multiple of 16.
void copy_row(const RowsView& x, std::int64_t index, float* dst) {
    const std::byte* src = row_of(x, index);
    const std::int64_t padded = round_up(x.cols, 16);
    if (x.dtype == DType::f32) {
        std::memcpy(dst, src, static_cast<std::size_t>(x.cols) * 4);
    } else {
        for (std::int64_t c = 0; c < x.cols; ++c) dst[c] = load_f32(src + 2 * c, x.dtype);
    }
    for (std::int64_t c = x.cols; c < padded; ++c) dst[c] = 0;
}

// What a worker needs for a tile of the grouped plan, or for a task of the other.
struct Scratch {
    const float** x = nullptr;
    const float** gathered = nullptr;
    std::byte** y = nullptr;
    Term* terms = nullptr;
    std::int32_t *order = nullptr, *spare = nullptr, *node = nullptr, *forced = nullptr, *begin = nullptr;
    float *dots = nullptr, *z = nullptr, *coefficients = nullptr, *copies = nullptr;

    // Lays the arrays out from `base`; returns the bytes they take.
    std::int64_t place(std::byte* base, std::int64_t tokens, std::int64_t rows_per_token, std::int64_t z_floats,
                       std::int64_t copied_cols) {
        std::int64_t offset = 0;
        auto take = [&](auto** pointer, std::int64_t count) {
            using Element = std::remove_reference_t<decltype(**pointer)>;
            *pointer = reinterpret_cast<Element*>(base + offset);
            offset += round_up(count * static_cast<std::int64_t>(sizeof(Element)), 64);
        };
        take(&x, tokens);
        take(&gathered, tokens);
        take(&y, tokens);
        take(&terms, tokens * rows_per_token);
        take(&order, tokens);
        take(&spare, tokens);
        take(&node, tokens);
        take(&forced, tokens);
        take(&begin, tokens + 1);
        take(&dots, tokens);
        take(&z, tokens * z_floats);
        take(&coefficients, tokens * z_floats);
        take(&copies, tokens * copied_cols);
        return offset;
    }
};

class Runner {
  public:
    Runner(const TreeCall& call, const TreePlan& plan, const RowsView& x, const RowsView& y, std::byte* workspace)
        : call_(call), tree_(call.tree), plan_(plan), x_(x), y_(y), workspace_(workspace) {}

    std::int64_t trees() const { return tree_.header.trees; }
    std::int64_t spans() const { return divide_up(plan_.tokens, plan_.span); }
    std::int64_t first(std::int64_t span) const { return span * plan_.span; }
    std::int64_t tokens(std::int64_t span) const { return least(plan_.span, plan_.tokens - first(span)); }

    // ---- per token: copy, walk, finish

    std::int64_t per_token_tasks(std::int64_t phase) const {
        const std::int64_t in_span = tokens(phase / 3);
        switch (phase % 3) {
            case 0: return plan_.copy_x ? divide_up(in_span, finish_tokens) : 0;
            case 1: return divide_up(in_span * trees(), walkers_per_task);
            default: return call_.sums ? divide_up(in_span, finish_tokens) * plan_.column_tasks : 0;
        }
    }

    void per_token(std::int64_t phase, std::int64_t task, int worker) const {
        const std::int64_t span = phase / 3;
        if (phase % 3 == 0) {
            const std::int64_t begin = task * finish_tokens, end = least(begin + finish_tokens, tokens(span));
            for (std::int64_t i = begin; i < end; ++i) copy_row(x_, first(span) + i, copied(i));
        } else if (phase % 3 == 1) {
            walk(span, task);
        } else {
            finish(span, task, worker);
        }
    }

    // ---- grouped: upper levels, sort, lower levels; and the conversion of summed trees

    std::int64_t phases_per_span() const { return 3 * trees() + 1; }
    std::int64_t grouped_tasks(std::int64_t phase) const {
        const std::int64_t span = phase / phases_per_span(), step = phase % phases_per_span();
        const std::int64_t tiles = divide_up(tokens(span), plan_.tile);
        const bool sorts = plan_.sort_level < tree_.levels;
        if (step == 3 * trees()) return summed() ? tiles : 0;
        switch (step % 3) {
            case 0: return tiles;
            case 1: return sorts ? 1 : 0;
            default: return sorts ? most_chunks(tokens(span)) : 0;
        }
    }
    std::int64_t most_chunks(std::int64_t tokens) const { return 4 * divide_up(tokens, plan_.tile) + 2; }

    void grouped(std::int64_t phase, std::int64_t task, int worker) const {
        const std::int64_t span = phase / phases_per_span(), step = phase % phases_per_span(), which = step / 3;
        if (step == 3 * trees()) return convert_sums(span, task);
        switch (step % 3) {
            case 0: return upper_levels(span, which, task, worker);
            case 1: return sort(span);
            default: return lower_levels(span, which, task, worker);
        }
    }

  private:
    template <class T>
    T* at(std::int64_t offset) const {
        return reinterpret_cast<T*>(workspace_ + offset);
    }
    std::int64_t padded_cols() const { return round_up(x_.cols, 16); }
    float* copied(std::int64_t token) const { return at<float>(plan_.x_copy) + token * padded_cols(); }
    bool summed() const { return plan_.sums >= 0; }
    std::int64_t summed_stride() const { return round_up(tree_.header.d_out, 16); }

    Scratch scratch(int worker) const {
        Scratch s;
        if (plan_.plan == FffPlan::grouped)
            s.place(workspace_ + plan_.scratch + worker * plan_.scratch_bytes, plan_.tile, tree_.levels, plan_.z_stride,
                    plan_.copy_x ? padded_cols() : 0);
        else
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

    // What fff_route() and the grouped engine of leaves ask of one token in one tree.
    void route_result(std::int64_t slot, std::int64_t which, std::int32_t node, const float* z) const {
        const std::int64_t depth = tree_.header.depth;
        const std::int32_t leaf = node - static_cast<std::int32_t>(tree_.leaves());
        if (call_.leaf)
            call_.leaf[slot] = leaf + (call_.leaf_of_stack ? static_cast<std::int32_t>(which * tree_.leaves()) : 0);
        if (call_.z) std::memcpy(call_.z + slot * tree_.levels, z, static_cast<std::size_t>(tree_.levels) * 4);
        if (!call_.margin) return;
        float margin = std::numeric_limits<float>::infinity();
        for (std::int64_t t = 0; t < depth; ++t) {
            const NodeHead head = PackedTree::head(tree_.record(which, (node >> (depth - t)) - 1));
            const float distance = std::fabs(z[t] - head.threshold);
            if (!(distance >= margin)) margin = distance;  // takes NaN
            if (margin != margin) break;
        }
        call_.margin[slot] = margin;
    }

    // Terms of one token's path in one tree, from its activated z.
    Term* add_terms(std::int64_t which, std::int32_t node, const float* coefficients, Term* terms) const {
        const std::int64_t depth = tree_.header.depth;
        const bool scaled = tree_.format() == Format::int8;
        const bool skips = (tree_.header.flags & tree_outputs_finite) != 0;
        for (std::int64_t t = 0; t < tree_.levels; ++t) {
            const std::byte* record = tree_.record(which, (node >> (depth - t)) - 1);
            const float weight = coefficients[t];
            terms->row = record + tree_.out_offset;
            terms->weight = scaled ? weight * PackedTree::head(record).out_scale : weight;
            // Kept by position, not by a branch: half of relu's are 0, at random.
            terms += skips && weight == 0.0f ? 0 : 1;
        }
        return terms;
    }

    auto* sum_rows() const { return call_.kernels->sum[static_cast<int>(tree_.format()) - 1]; }

    void activate(float* z, float* coefficients, std::int64_t rows) const {
        call_.elementwise->activate({call_.activation, z, nullptr, nullptr, nullptr, rows, plan_.z_stride,
                                     plan_.z_stride, coefficients, plan_.z_stride});
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
            sum_rows()({s.terms, s.begin, &y, y_.dtype, 1, col0, least(cols, d_out - col0), false, false});
        }
    }

    // x of the tokens that ids name (ids == nullptr: from `token` on).
    void take_x(const Scratch& s, std::int64_t token, const std::int32_t* ids, std::int64_t count) const {
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t index = token + (ids ? ids[i] : i);
            if (plan_.copy_x) {
                float* copy = s.copies + i * padded_cols();
                copy_row(x_, index, copy);
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
        take_x(s, token, nullptr, count);
        for (std::int64_t i = 0; i < count; ++i) {
            s.order[i] = static_cast<std::int32_t>(i);
            tile.node[i] = 1;
            if (call_.forced) s.forced[i] = call_.forced[(token + i) * trees() + which];
        }
        walk_sorted(tile, s.order, count, 0, plan_.sort_level);
        if (all_levels) finish_tile(s, which, token, nullptr, count);
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
        finish_tile(s, which, first(span), ids, count);
    }

    void finish_tile(const Scratch& s, std::int64_t which, std::int64_t token, const std::int32_t* ids,
                     std::int64_t count) const {
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
        for (std::int64_t col = 0; col < d_out; col += block_columns)
            sum_rows()({s.terms, s.begin, s.y, summed() ? DType::f32 : y_.dtype, count, col,
                        least(block_columns, d_out - col), which > 0, false});
    }

    void convert_sums(std::int64_t span, std::int64_t task) const {
        const std::int64_t begin = task * plan_.tile, count = least(plan_.tile, tokens(span) - begin);
        for (std::int64_t i = begin; i < begin + count; ++i)
            call_.elementwise->store({at<float>(plan_.sums) + i * summed_stride(), summed_stride(), nullptr, 1,
                                      tree_.header.d_out, row_of(y_, first(span) + i), y_.dtype, 0});
    }

    const TreeCall& call_;
    const PackedTree& tree_;
    const TreePlan& plan_;
    const RowsView& x_;
    const RowsView& y_;
    std::byte* workspace_;
};

}  // namespace

TreePlan plan_tree_call(const TreeCall& call, const RowsView& x, DType y_dtype, int threads, FffPlan wanted) {
    const PackedTree& tree = call.tree;
    const std::int64_t trees = tree.header.trees, padded_cols = round_up(x.cols, 16);
    TreePlan plan;
    plan.tokens = x.rows;
    plan.copy_x = x.dtype != DType::f32 || x.cols % 16 != 0;
    plan.z_stride = round_up(tree.levels > 0 ? tree.levels : 1, 16);
    const std::int64_t work = least(x.rows, 1 << 20) * trees * tree.levels * tree.header.record_bytes;
    plan.threads = work < serial_bytes ? 1 : threads;
    plan.plan = wanted;
    if (wanted == FffPlan::automatic) plan.plan = x.rows >= 64 ? FffPlan::grouped : FffPlan::per_token;

    std::int64_t offset = 0;
    auto take = [&offset](std::int64_t bytes) {
        const std::int64_t at = offset;
        offset += round_up(bytes, 64);
        return at;
    };
    plan.sums = -1;
    Scratch measure;
    if (plan.plan == FffPlan::grouped) {
        plan.tile = tile_bytes / (padded_cols * 4) / 16 * 16;
        if (plan.tile > largest_tile) plan.tile = largest_tile;
        if (plan.tile < 16) plan.tile = 16;
        std::int64_t below = 0;  // levels of a subtree that fits
        while (below < tree.levels && ((std::int64_t{2} << below) - 1) * tree.header.record_bytes <= subtree_bytes)
            ++below;
        plan.sort_level = tree.levels - below;
        if (plan.sort_level <= 0) plan.sort_level = tree.levels;
        else if (plan.sort_level > deepest_sort) plan.sort_level = deepest_sort;
        const bool sums = call.sums && trees > 1 && y_dtype != DType::f32;
        plan.span = least(x.rows, sums ? summed_span : grouped_span);
        const std::int64_t tiles = divide_up(plan.span, plan.tile);
        if (plan.sort_level < tree.levels) {
            plan.z = take(plan.span * plan.z_stride * 4);
            plan.node = take(plan.span * 4);
            plan.order = take(plan.span * 4);
            plan.chunks = take((4 * tiles + 2 + 2) * 4);
            plan.counts = take(((std::int64_t{1} << plan.sort_level) + 1) * 4);
        }
        if (sums) plan.sums = take(plan.span * round_up(tree.header.d_out, 16) * 4);
        plan.scratch_bytes =
            measure.place(nullptr, plan.tile, tree.levels, plan.z_stride, plan.copy_x ? padded_cols : 0);
    } else {
        plan.span = least(x.rows, per_token_span);
        plan.z = take(plan.span * trees * plan.z_stride * 4);
        plan.node = take(plan.span * trees * 4);
        if (plan.copy_x) plan.x_copy = take(plan.span * padded_cols * 4);
        const std::int64_t finish_tasks = divide_up(plan.span, finish_tokens);
        if (call.sums && finish_tasks < 2 * plan.threads && plan.threads > 1) {
            const std::int64_t most = divide_up(tree.header.d_out, 64);
            plan.column_tasks = least(divide_up(2 * plan.threads, finish_tasks), most);
        }
        plan.scratch_bytes = measure.place(nullptr, 1, tree.levels * trees, plan.z_stride * trees, 0);
    }
    plan.scratch = take(plan.scratch_bytes * plan.threads);
    plan.workspace_bytes = offset;
    return plan;
}

void run_tree_call(const TreeCall& call, const TreePlan& plan, const RowsView& x, const RowsView& y,
                   std::byte* workspace) noexcept {
    const Runner runner(call, plan, x, y, workspace);
    if (plan.plan == FffPlan::grouped)
        parallel_phases(
            plan.threads, runner.spans() * runner.phases_per_span(),
            [&](std::int64_t phase) { return runner.grouped_tasks(phase); },
            [&](std::int64_t phase, std::int64_t task, int worker) { runner.grouped(phase, task, worker); });
    else
        parallel_phases(
            plan.threads, runner.spans() * 3, [&](std::int64_t phase) { return runner.per_token_tasks(phase); },
            [&](std::int64_t phase, std::int64_t task, int worker) { runner.per_token(phase, task, worker); });
}

}  // namespace fastffn
