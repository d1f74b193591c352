#include "launch/expert_choice.hpp"

#include "kernels/expert_choice.cuh"
#include "launch/launch.hpp"

namespace fastffn::cuda {

cudaError_t run_expert_choice(const RouteCall& call, Pieces& pieces, cudaStream_t stream) {
    const std::int64_t tokens = call.logits.rows, experts = call.logits.cols;
    const auto at_most = [](std::int64_t blocks, std::int64_t most) {
        return dim3(static_cast<unsigned>(blocks < most ? blocks : most));
    };
    const std::int64_t fit = route_shared_limit / (experts * 4), warps = fit < route_warps ? fit : route_warps;
    dim3 collectors = at_most((tokens + (warps ? warps : 1) - 1) / (warps ? warps : 1), 65536);
    if (warps == 0 && collectors.x > route_workspace_blocks) collectors.x = route_workspace_blocks;
    auto* const scores = pieces.take<float>(experts * tokens * 4);
    auto* const workspace = warps ? nullptr : pieces.take<int>(collectors.x * experts * 4);
    if (pieces.counts_only() || tokens == 0) return cudaSuccess;
    cudaError_t status = launch(choice_score_kernel,
                                {at_most((tokens + 7) / 8, 65536), dim3(256), 0, stream, "choice_score"}, call, scores);
    if (status == cudaSuccess)
        status =
            launch(choice_choose_kernel, {at_most(experts, 65536), dim3(choice_threads), 0, stream, "choice_choose"},
                   scores, experts, tokens, call.capacity);
    if (status != cudaSuccess) return status;
    const Grid grid = {collectors, dim3(static_cast<unsigned>(warps ? warps * 32 : 32)),
                       static_cast<int>(warps * experts * 4), stream, "choice_collect"};
    return launch(choice_collect_kernel, grid, call, scores, workspace);
}

}  // namespace fastffn::cuda
