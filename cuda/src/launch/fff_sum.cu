#include "kernels/fff_sum.cuh"
#include "launch/launch.hpp"

namespace fastffn::cuda {

namespace {

template <int vectors>
cudaError_t run_sum(const SumArgs& args, const Grid& grid, int run) {
    switch (args.tree.format) {
        case row_f32: return launch(sum_kernel<row_f32, vectors>, grid, args, run);
        case row_f16: return launch(sum_kernel<row_f16, vectors>, grid, args, run);
        case row_bf16: return launch(sum_kernel<row_bf16, vectors>, grid, args, run);
        case row_int8: return launch(sum_kernel<row_int8, vectors>, grid, args, run);
        default: return cudaErrorInvalidValue;
    }
}

}  // namespace

cudaError_t launch_sum(const SumArgs& args, cudaStream_t stream) {
    if (args.tree.levels > 31 || args.tree.out_bytes % 16 != 0) return cudaErrorInvalidValue;
    // Few tokens: a warp per 512 bytes of columns, so that their loads are under way at once. Many: a warp has up to 2 KiB of them,
    // which shares the coefficients and addresses. The same bits: columns do not meet.
    constexpr std::int64_t few = 1024;
    const std::int64_t span = args.walkers.tokens <= few ? 512 : 2048;
    const std::int64_t spans = (args.tree.out_bytes + span - 1) / span;
    const int run = walk_run(args.walkers.tokens);
    const std::int64_t blocks = (args.walkers.tokens + sum_warps * run - 1) / (sum_warps * run);
    if (blocks > 0x7fffffff) return cudaErrorInvalidValue;
    const Grid grid = {dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(spans < 65535 ? spans : 65535)),
                       dim3(sum_warps * 32), 0, stream, "fff_sum"};
    return span == 512 ? run_sum<1>(args, grid, run) : run_sum<4>(args, grid, run);
}

}  // namespace fastffn::cuda
