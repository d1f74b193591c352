#include "launch/codes.hpp"

#include "kernels/group_sums.cuh"
#include "launch/codes_kernels.hpp"
#include "launch/launch.hpp"
#include "launch/sm90_codes.hpp"

namespace fastffn::cuda {

namespace {

// Whether tokens are so few that reading the weights again for each 16 of them (from L2, where several blocks of the same rows run
// together) is cheaper than tiles of 128 rows, whose time does not fall with the tokens below 64 and of which there should be
// one for every multiprocessor. By estimate, never timed.
bool are_few(const CodesArgs& args) {
    if (args.tokens <= 16) return true;
    const std::int64_t outputs = args.w_gate.codes ? 64 : 128;
    const std::int64_t tiles = (args.out_features + outputs - 1) / outputs, passes = (args.tokens + 15) / 16;
    return passes <= 4 && tiles * passes <= 132;
}

}  // namespace

cudaError_t launch_codes(const CodesArgs& args, const TokenGroups* groups, cudaStream_t stream) {
    const bool few = groups ? groups->tile_tokens <= 16 : are_few(args);
    if (!few && !groups && !wrong_codes(args) && prefers_sm90_codes(args)) {
        const cudaError_t status = launch_sm90_codes(args, stream);
        if (status != cudaErrorNotSupported) return status;
    }
    return few ? launch_codes_few_tokens(args, groups, stream) : launch_codes_many_tokens(args, groups, stream);
}

cudaError_t launch_group_sums(const void* x, std::int64_t x_stride, std::int64_t rows, std::int64_t depth,
                              std::int64_t group, std::int64_t groups, float* sums, cudaStream_t stream) {
    if (rows < 0 || depth < 0 || group <= 0 || groups * group < depth) return cudaErrorInvalidValue;
    const std::int64_t blocks = (rows * groups + group_sums_warps - 1) / group_sums_warps;
    const Grid grid = {dim3(static_cast<unsigned>(blocks < 65536 ? blocks : 65536)), dim3(group_sums_warps * 32), 0,
                       stream, "group_sums"};
    return launch(group_sums_kernel, grid, x, x_stride, rows, depth, group, groups, sums);
}

}  // namespace fastffn::cuda
