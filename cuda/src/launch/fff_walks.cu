#include "launch/fff_walks.hpp"

#include "launch/matrix.hpp"
#include "layout.hpp"
#include "layout/tree.hpp"

namespace fastffn::cuda {

namespace {

// Estimates, to be measured. Up to this many walkers one round trip to memory per four levels is worth 15 rows instead of 4.
constexpr std::int64_t block_walkers = 512;
// From this many bytes of rows on paths walkers are sorted: two sorts and the tiles take 20 to 25 µs on an H200, in which a walk
// reads about 100 MiB from L2.
constexpr std::int64_t grouped_bytes = 96 << 20;
// Walkers per node from which on a tile of its subtree reads less than their paths: 63 rows against 6 each.
constexpr std::int64_t least_share = 16;

// What prepare() makes rows for: the nodes, as if they were one matrix.
DeviceMatrix as_matrix(const TreeArgs& tree) {
    DeviceMatrix w = {};
    w.payload = tree.w_node;
    w.format = tree.route_format;
    w.out_features = tree.nodes;
    w.in_features = tree.d_model;
    w.count = tree.trees;
    return w;
}

// Levels in parts of up to six, none much smaller than the others.
struct Parts {
    int levels, count;
    explicit Parts(int levels_) : levels(levels_), count((levels_ + tile_levels - 1) / tile_levels) {}
    int end(int part) const { return levels * (part + 1) / count; }
};

void walk_grouped(const TreeArgs& tree, const Walkers& walkers, const DeviceRows& x, const WalkPlan& plan, Counted last,
                  const std::int32_t** order, Pieces& pieces, Launches& launches) {
    Input rows;
    if (plan.by_tiles) launches.prepare([&] { return prepare(x, as_matrix(tree), pieces, launches.stream, &rows); });
    // By the node of `sorted_level` on which walkers stand; on level 0 they need no sort.
    SortArgs sorted = {};
    int sorted_level = 0;
    const Parts parts(tree.levels);
    for (int part = 0, level = 0; level < tree.levels; part++) {
        const bool by_tiles = plan.by_tiles && sorted_level == level;
        int end = parts.end(part);
        // Where too few walkers would share a node's rows, the rest follows at once, each on its own.
        const bool sorts = end < tree.levels && tree.trees << end <= plan.most_groups;
        if (!sorts && !by_tiles) end = tree.levels;
        SortArgs next = {};
        if (sorts) {
            next.walkers = walkers;
            next.trees = tree.trees;
            next.level = end;
            next.tile_walkers = tile_walkers;
            plan_sort(next, false, true, pieces);
            clear_counts(next, launches);
        }
        const Counted counted = sorts ? next.counted : end == tree.levels ? last : Counted{};
        if (by_tiles) {
            const std::int64_t tiles = level == 0 ? (walkers.tokens + tile_walkers - 1) / tile_walkers * tree.trees
                                                  : most_walk_tiles(walkers.count, tree.trees << level, tile_walkers);
            launches.run([&] {
                return launch_tile_walk({tree, walkers, rows.rows, rows.stride, level, end, sorted.order,
                                         sorted.offsets, sorted.tiles, sorted.tile_count, tiles, counted},
                                        launches.stream);
            });
        } else {
            launches.run([&] {
                return launch_walk(
                    {tree, walkers, x.data, static_cast<DType>(x.dtype), x.stride, level, end, sorted.order, counted},
                    launches.stream);
            });
        }
        level = end;
        if (!sorts) continue;
        launches.run([&] { return launch_sort(next, launches.stream); });
        sorted = next;
        sorted_level = level;
    }
    *order = sorted.order;
}

}  // namespace

TreeArgs tree_args(const DeviceTree& tree) {
    TreeArgs args = {};
    const std::int64_t nodes = (std::int64_t{1} << (tree.depth + (tree.all_nodes ? 1 : 0))) - 1;
    const TreeLayout layout = tree_layout(tree.format, tree.route_format, tree.trees * nodes, tree.d_model, tree.d_out);
    const auto* const payload = static_cast<const unsigned char*>(tree.payload);
    args.heads = reinterpret_cast<const float4*>(payload);
    args.w_node = payload + layout.w_node;
    args.w_out = payload + layout.w_out;
    args.node_bytes = layout.node_bytes;
    args.out_bytes = layout.out_bytes;
    args.trees = tree.trees;
    args.nodes = nodes;
    args.d_model = tree.d_model;
    args.d_out = tree.d_out;
    args.depth = static_cast<int>(tree.depth);
    args.levels = static_cast<int>(tree.depth) + (tree.all_nodes ? 1 : 0);
    args.format = tree.format;
    args.route_format = tree.route_format;
    args.ties_right = tree.ties_right != 0;
    return args;
}

WalkPlan plan_walk(const DeviceTree& tree, const DeviceRows& x, std::int32_t plan) {
    constexpr std::int32_t automatic = 0, per_token = 1;  // fastffn::FffPlan
    WalkPlan chosen;
    const TreeArgs args = tree_args(tree);
    const std::int64_t walkers = x.rows * tree.trees;
    const std::int64_t path_bytes = args.levels * (args.node_bytes + args.out_bytes);
    const bool is_large = path_bytes > 0 && walkers >= grouped_bytes / path_bytes;
    if (args.levels == 0 || plan == per_token || (plan == automatic && !is_large)) {
        chosen.how =
            walkers <= block_walkers && args.levels > 0 && fits_block_walk(args) ? WalkPlan::block : WalkPlan::each;
        return chosen;
    }
    chosen.how = WalkPlan::grouped;
    // Products of x's type with rows of another one would round x.
    chosen.by_tiles = (tree.route_format == format_bf16 && x.dtype == static_cast<std::int32_t>(DType::bf16)) ||
                      (tree.route_format == format_f16 && x.dtype == static_cast<std::int32_t>(DType::f16));
    // A caller who asks for it has walkers sorted at any share; but tables of all nodes are not to exceed the walkers' own.
    chosen.most_groups = plan == automatic ? walkers / least_share : walkers * 4 + 256;
    return chosen;
}

Walkers new_walkers(const TreeArgs& tree, std::int64_t tokens, Pieces& pieces) {
    Walkers walkers = {};
    walkers.tokens = tokens;
    walkers.count = tokens * tree.trees;
    walkers.z = pieces.take<float>(walkers.count * tree.levels * 4);
    walkers.node = pieces.take<std::int32_t>(walkers.count * 4);
    return walkers;
}

void plan_sort(SortArgs& sort, bool is_small, bool takes_order, Pieces& pieces) {
    const std::int64_t groups = sort.trees << sort.level, walkers = sort.walkers.count;
    sort.offsets = pieces.take<std::int32_t>((groups + 1) * 4);
    sort.tiles = pieces.take<std::int32_t>(most_walk_tiles(walkers, groups, sort.tile_walkers) * 8);
    sort.tile_count = pieces.take<std::int32_t>(4);
    if (!is_small) {
        sort.counted.counts = pieces.take<std::int32_t>(groups * 4);
        sort.counted.ranks = pieces.take<std::int32_t>(walkers * 4);
        sort.tile_first = pieces.take<std::int32_t>(groups * 4);
    }
    if (takes_order) {
        sort.order = pieces.take<std::int32_t>(walkers * 4);
        return;
    }
    sort.rows = pieces.take<std::int32_t>(walkers * 4);
    sort.slots = pieces.take<std::int32_t>(walkers * 4);
}

void clear_counts(const SortArgs& sort, Launches& launches) {
    if (!sort.counted.counts) return;
    launches.run([&] {
        return cudaMemsetAsync(sort.counted.counts, 0, static_cast<std::size_t>((sort.trees << sort.level) * 4),
                               launches.stream);
    });
}

void walk_trees(const TreeArgs& tree, const Walkers& walkers, const DeviceRows& x, const WalkPlan& plan, Counted last,
                SumArgs* sum, Pieces& pieces, Launches& launches) {
    const WalkArgs all = {tree, walkers, x.data, static_cast<DType>(x.dtype), x.stride, 0, tree.levels, nullptr, last};
    if (plan.how == WalkPlan::block) {
        const bool sums = sum && tree.trees == 1;
        launches.run([&] { return launch_block_walk({all, sums ? *sum : SumArgs{}, sums}, launches.stream); });
        if (sums) return;
    } else if (plan.how == WalkPlan::each) {
        launches.run([&] { return launch_walk(all, launches.stream); });
    } else {
        const std::int32_t* order = nullptr;
        walk_grouped(tree, walkers, x, plan, last, &order, pieces, launches);
        if (sum) sum->order = order;
    }
    if (sum) launches.run([&] { return launch_sum(*sum, launches.stream); });
}

}  // namespace fastffn::cuda
