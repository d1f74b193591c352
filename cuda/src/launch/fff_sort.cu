#include "kernels/fff_results.cuh"
#include "kernels/fff_sort.cuh"
#include "launch/launch.hpp"

namespace fastffn::cuda {

namespace {

unsigned blocks_of(std::int64_t items, int threads) {
    const std::int64_t blocks = (items + threads - 1) / threads;
    return static_cast<unsigned>(blocks < 1 << 20 ? blocks : 1 << 20);
}

dim3 rows_grid(std::int64_t tokens, std::int64_t cols) {
    const std::int64_t columns = (cols + result_threads - 1) / result_threads;
    return dim3(static_cast<unsigned>(tokens < 1 << 20 ? tokens : 1 << 20),
                static_cast<unsigned>(columns < 65535 ? columns : 65535));
}

}  // namespace

cudaError_t launch_sort(const SortArgs& args, cudaStream_t stream) {
    const std::int64_t groups = args.trees << args.level;
    if (args.tile_walkers < 1) return cudaErrorInvalidValue;
    if (const cudaError_t status =
            launch(scan_kernel, {dim3(1), dim3(scan_threads), 0, stream, "fff_scan"}, args, groups);
        status != cudaSuccess)
        return status;
    return launch(scatter_kernel,
                  {dim3(blocks_of(args.walkers.count, sort_threads)), dim3(sort_threads), 0, stream, "fff_scatter"},
                  args);
}

cudaError_t launch_small_sort(const SortArgs& args, cudaStream_t stream) {
    if (args.walkers.count > small_sort_limit || args.tile_walkers < 1) return cudaErrorInvalidValue;
    return launch(small_sort_kernel, {dim3(1), dim3(small_sort_limit), 0, stream, "fff_small_sort"}, args);
}

cudaError_t launch_force(const ForceArgs& args, cudaStream_t stream) {
    return launch(force_kernel,
                  {dim3(blocks_of(args.walkers.count, sort_threads)), dim3(sort_threads), 0, stream, "fff_force"},
                  args);
}

cudaError_t launch_combine(const CombineArgs& args, cudaStream_t stream) {
    return launch(combine_kernel, {rows_grid(args.tokens, args.cols), dim3(result_threads), 0, stream, "fff_combine"},
                  args);
}

cudaError_t launch_mix(const MixArgs& args, cudaStream_t stream) {
    return launch(mix_kernel, {rows_grid(args.tokens, args.cols), dim3(result_threads), 0, stream, "fff_mix"}, args);
}

cudaError_t launch_route_results(const RouteResultArgs& args, cudaStream_t stream) {
    return launch(
        route_results_kernel,
        {dim3(blocks_of(args.walkers.count, result_threads)), dim3(result_threads), 0, stream, "fff_route_results"},
        args);
}

}  // namespace fastffn::cuda
