// What comes after the trees: leaves' rows added up, a master mixed in, the results of a route.
#pragma once

#include "kernels/fff_rows.cuh"

namespace fastffn::cuda {
namespace {

constexpr int result_threads = 256;

// Grid: tokens, columns in the second dimension.
__global__ void __launch_bounds__(result_threads) combine_kernel(CombineArgs args) {
    for (std::int64_t token = blockIdx.x; token < args.tokens; token += gridDim.x)
        for (std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * result_threads + threadIdx.x;
             column < args.cols; column += static_cast<std::int64_t>(gridDim.y) * result_threads) {
            float sum = 0;
            for (std::int64_t which = 0; which < args.trees; which++) {
                const std::int64_t slot = args.slots[which * args.tokens + token];
                sum += slot < 0 ? __int_as_float(0x7fffffff) : args.rows[slot * args.row_stride + column];
            }
            store_element(args.y, args.y_dtype, token * args.y_stride + column, sum);
        }
}

__global__ void __launch_bounds__(result_threads) mix_kernel(MixArgs args) {
    for (std::int64_t token = blockIdx.x; token < args.tokens; token += gridDim.x)
        for (std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * result_threads + threadIdx.x;
             column < args.cols; column += static_cast<std::int64_t>(gridDim.y) * result_threads) {
            const std::int64_t at = token * args.row_stride + column;
            store_element(args.y, args.y_dtype, token * args.y_stride + column,
                          fmaf(args.tree_share, args.tree[at], args.master_share * args.master[at]));
        }
}

__global__ void __launch_bounds__(result_threads) route_results_kernel(RouteResultArgs args) {
    const TreeArgs& tree = args.tree;
    for (std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * result_threads + threadIdx.x;
         slot < args.walkers.count; slot += static_cast<std::int64_t>(gridDim.x) * result_threads) {
        const std::int64_t which = slot % tree.trees, walker = which * args.walkers.tokens + slot / tree.trees;
        const std::int32_t node = args.walkers.node[walker];
        args.leaf[slot] = node - static_cast<std::int32_t>(std::int64_t{1} << tree.depth);
        const float* const z = args.walkers.z + walker * tree.levels;
        if (args.z)
            for (int level = 0; level < tree.levels; level++) args.z[slot * tree.levels + level] = z[level];
        if (!args.margin) continue;
        float margin = __int_as_float(0x7f800000);
        for (int level = 0; level < tree.depth; level++) {
            const float threshold = __ldg(tree.heads + node_place(tree, which, node >> (tree.depth - level))).z;
            const float distance = fabsf(z[level] - threshold);
            if (!(distance >= margin)) margin = distance;  // takes NaN
            if (margin != margin) break;
        }
        args.margin[slot] = margin;
    }
}

}  // namespace
}  // namespace fastffn::cuda
