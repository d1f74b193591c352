#include "launch/fff.hpp"

#include "launch/fff_walks.hpp"
#include "launch/ffn.hpp"
#include "launch/matrix.hpp"

namespace fastffn::cuda {

namespace {

// Workspace for the tokens of a span: more tokens go one span after another, through the same memory.
constexpr std::int64_t span_bytes = 128 << 20, least_span = 2048, most_walkers = 1 << 22;

DeviceRows slice(const DeviceRows& rows, std::int64_t first, std::int64_t count) {
    DeviceRows part = rows;
    if (part.data)
        part.data =
            static_cast<unsigned char*>(part.data) + first * rows.stride * bytes_of(static_cast<DType>(rows.dtype));
    part.rows = count;
    return part;
}

DeviceRows f32_rows(std::int64_t rows, std::int64_t cols, Pieces& pieces) {
    const std::int64_t stride = round_to(cols, 4);
    return {pieces.take(rows * stride * 4), static_cast<std::int32_t>(DType::f32), rows, cols, stride};
}

std::int64_t output_features(const FffCall& call) {
    return call.down.payload ? call.down.out_features : call.tree.d_out;
}

std::int64_t span_of(const FffCall& call) {
    const std::int64_t trees = call.tree.trees;
    std::int64_t bytes = trees * (call.tree.depth + 8) * 4;
    if (call.down.payload) bytes += trees * 4 * (2 * call.up.out_features + call.down.out_features);
    if (call.master.up.payload) bytes += 8 * call.tree.d_out;
    std::int64_t span = span_bytes / bytes > least_span ? span_bytes / bytes : least_span;
    if (span > most_walkers / trees) span = most_walkers / trees;
    span = span < 128 ? 128 : span / 128 * 128;
    return span < call.x.rows ? span : call.x.rows;
}

// How many tokens of a tile share a leaf's weights.
int leaf_tile(std::int64_t walkers, std::int64_t leaves) {
    const std::int64_t share = walkers / (leaves < walkers ? leaves : walkers);
    return share <= 8 ? 8 : share <= 32 ? 16 : 128;
}

// The small FFN of each walker's leaf, added up over trees.
void run_leaves(const FffCall& call, const WalkPlan& plan, const Walkers& walkers, const SortArgs& sorted,
                const DeviceRows& x, const DeviceRows& y, Pieces& pieces, Launches& launches) {
    const cudaStream_t stream = launches.stream;
    const std::int64_t leaves = call.tree.trees << call.tree.depth;
    TokenGroups groups = {sorted.offsets,
                          sorted.rows,
                          sorted.tiles,
                          sorted.tile_count,
                          most_walk_tiles(walkers.count, leaves, plan.leaf_tile),
                          walkers.count,
                          plan.leaf_tile,
                          leaves};
    Input input, hidden_input;
    const DType dtype = hidden_dtype(call.down, static_cast<DType>(x.dtype));
    DeviceRows hidden = {nullptr, static_cast<std::int32_t>(dtype), walkers.count, call.up.out_features, 0};
    hidden.stride = round_to(hidden.cols * bytes_of(dtype), 16) / bytes_of(dtype);
    hidden.data = pieces.take(hidden.rows * hidden.stride * bytes_of(dtype));
    launches.prepare([&] { return prepare(x, call.up, pieces, stream, &input, &groups); });
    launches.run([&] {
        return multiply(input, call.up, {}, call.b_up, {}, static_cast<Activation>(call.activation), hidden, &groups,
                        stream);
    });
    groups.rows = nullptr;
    launches.prepare([&] { return prepare(hidden, call.down, pieces, stream, &hidden_input, &groups); });
    const DeviceRows rows = f32_rows(walkers.count, call.down.out_features, pieces);
    launches.run([&] {
        return multiply(hidden_input, call.down, {}, call.b_down, {}, Activation::identity, rows, &groups, stream);
    });
    launches.run([&] {
        return launch_combine({static_cast<const float*>(rows.data), rows.stride, sorted.slots, x.rows, call.tree.trees,
                               rows.cols, y.data, static_cast<DType>(y.dtype), y.stride},
                              stream);
    });
}

void run_span(const FffCall& call, const WalkPlan& plan, std::int64_t first, std::int64_t tokens, Pieces& pieces,
              Launches& launches) {
    const TreeArgs tree = tree_args(call.tree);
    const DeviceRows x = slice(call.x, first, tokens), y = slice(call.y, first, tokens);
    const bool has_master = call.master.up.payload != nullptr, has_leaves = call.down.payload != nullptr;
    const DeviceRows result = has_master ? f32_rows(tokens, output_features(call), pieces) : y;
    Walkers walkers = new_walkers(tree, tokens, pieces);
    if (call.leaf) {
        walkers.forced_is_wide = call.leaf_dtype == static_cast<std::int32_t>(DType::i64);
        walkers.forced =
            static_cast<const unsigned char*>(call.leaf) + first * tree.trees * (walkers.forced_is_wide ? 8 : 4);
    }
    if (has_leaves) {
        SortArgs sort = {};
        sort.walkers = walkers;
        sort.trees = tree.trees;
        sort.level = tree.depth;
        sort.tile_walkers = plan.leaf_tile;
        plan_sort(sort, plan.small_sort, false, pieces);
        clear_counts(sort, launches);
        if (call.leaf)
            launches.run(
                [&] { return launch_force({walkers, tree.trees, tree.depth, sort.counted}, launches.stream); });
        else walk_trees(tree, walkers, x, plan, sort.counted, nullptr, pieces, launches);
        launches.run([&] {
            return plan.small_sort ? launch_small_sort(sort, launches.stream) : launch_sort(sort, launches.stream);
        });
        run_leaves(call, plan, walkers, sort, x, result, pieces, launches);
    } else {
        SumArgs sum = {tree,
                       walkers,
                       static_cast<Activation>(call.activation),
                       result.data,
                       static_cast<DType>(result.dtype),
                       result.stride,
                       nullptr};
        walk_trees(tree, walkers, x, plan, {}, &sum, pieces, launches);
    }
    if (!has_master) return;
    FfnCall master = call.master;
    master.x = x;
    master.y = f32_rows(tokens, output_features(call), pieces);
    void* const workspace = pieces.take(workspace_bytes(master));
    launches.run([&] { return run(master, workspace, launches.stream); });
    launches.run([&] {
        return launch_mix(
            {static_cast<const float*>(result.data), static_cast<const float*>(master.y.data), call.tree_share,
             call.master_share, tokens, result.cols, result.stride, y.data, static_cast<DType>(y.dtype), y.stride},
            launches.stream);
    });
}

cudaError_t run(const FffCall& call, Pieces& pieces, cudaStream_t stream) {
    if (call.x.rows == 0) return cudaSuccess;
    Launches launches{stream, !pieces.counts_only()};
    WalkPlan plan = plan_walk(call.tree, call.x, call.plan);
    if (call.down.payload) {
        const std::int64_t walkers = call.x.rows * call.tree.trees;
        plan.leaf_tile = leaf_tile(walkers, call.tree.trees << call.tree.depth);
        plan.small_sort = walkers <= small_sort_limit;
    }
    const std::int64_t span = span_of(call), before = pieces.used;
    for (std::int64_t first = 0; first < call.x.rows && launches.status == cudaSuccess; first += span) {
        const std::int64_t left = call.x.rows - first;
        pieces.used = before;
        run_span(call, plan, first, left < span ? left : span, pieces, launches);
        if (!launches.on) break;  // the first span is the largest
    }
    return launches.status;
}

cudaError_t run(const FffRouteCall& call, Pieces& pieces, cudaStream_t stream) {
    const TreeArgs tree = tree_args(call.tree);
    Launches launches{stream, !pieces.counts_only()};
    const WalkPlan plan = plan_walk(call.tree, call.x, call.plan);
    std::int64_t span = most_walkers / tree.trees / 128 * 128;
    if (span < 128) span = 128;
    const std::int64_t before = pieces.used;
    for (std::int64_t first = 0; first < call.x.rows && launches.status == cudaSuccess; first += span) {
        const std::int64_t left = call.x.rows - first, tokens = left < span ? left : span;
        pieces.used = before;
        const Walkers walkers = new_walkers(tree, tokens, pieces);
        walk_trees(tree, walkers, slice(call.x, first, tokens), plan, {}, nullptr, pieces, launches);
        const std::int64_t slot = first * tree.trees;
        launches.run([&] {
            return launch_route_results({tree, walkers, call.leaf + slot, call.margin ? call.margin + slot : nullptr,
                                         call.z ? call.z + slot * tree.levels : nullptr},
                                        stream);
        });
        if (!launches.on) break;
    }
    return launches.status;
}

template <class Call>
std::int64_t count_bytes(const Call& call) {
    Pieces pieces{nullptr};
    run(call, pieces, nullptr);
    return pieces.used;
}

bool is_row_format(std::int32_t format) { return format >= 1 && format <= 4; }

const char* tree_refusal(const DeviceTree& tree) {
    if (!is_row_format(tree.format) || !is_row_format(tree.route_format) || tree.depth < 0 || tree.depth > 30)
        return "trees of this format have no CUDA kernels";
    return nullptr;
}

}  // namespace

const char* refusal(const FffRouteCall& call) { return tree_refusal(call.tree); }

const char* refusal(const FffCall& call) {
    if (const char* reason = tree_refusal(call.tree)) return reason;
    if (call.down.payload)
        for (const DeviceMatrix* w : {&call.up, &call.down})
            if (const char* reason = refusal(*w)) return reason;
    return call.master.up.payload ? refusal(call.master) : nullptr;
}

std::int64_t workspace_bytes(const FffCall& call) { return count_bytes(call); }
std::int64_t workspace_bytes(const FffRouteCall& call) { return count_bytes(call); }

cudaError_t run(const FffCall& call, void* workspace, cudaStream_t stream) {
    Pieces pieces{static_cast<unsigned char*>(workspace)};
    return call.x.rows ? run(call, pieces, stream) : cudaSuccess;
}

cudaError_t run(const FffRouteCall& call, void* workspace, cudaStream_t stream) {
    Pieces pieces{static_cast<unsigned char*>(workspace)};
    return call.x.rows ? run(call, pieces, stream) : cudaSuccess;
}

}  // namespace fastffn::cuda
