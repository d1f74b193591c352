#include "launch/route.hpp"

#include "kernels/route.cuh"
#include "launch/expert_choice.hpp"
#include "launch/group_tables.hpp"
#include "launch/launch.hpp"

namespace fastffn::cuda {

namespace {

bool by_score(const RouteCall& call) {
    const auto score = static_cast<RouterScore>(call.score);
    const bool sums_groups =
        call.topk_groups < call.groups && static_cast<GroupScore>(call.group_score) == GroupScore::top2;
    return call.correction.data || score == RouterScore::relu || (sums_groups && score != RouterScore::topk_softmax);
}

std::int64_t blocks_for(std::int64_t items, std::int64_t each, std::int64_t most) {
    const std::int64_t blocks = (items + each - 1) / each;
    return blocks < most ? blocks : most;
}

cudaError_t run_topk(const RouteCall& call, Pieces& pieces, cudaStream_t stream) {
    const std::int64_t warp_bytes = route_scratch(call.logits.cols, call.groups, call.k) * 4;
    const std::int64_t warps =
        route_shared_limit / warp_bytes < route_warps ? route_shared_limit / warp_bytes : route_warps;
    float* workspace = nullptr;
    std::int64_t blocks = blocks_for(call.logits.rows, warps ? warps : 1, 65536);
    if (warps == 0) {
        blocks = blocks < route_workspace_blocks ? blocks : route_workspace_blocks;
        workspace = pieces.take<float>(blocks * warp_bytes);
    }
    if (pieces.counts_only()) return cudaSuccess;
    const Grid grid = {dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(warps ? warps * 32 : 32)),
                       static_cast<int>(warps * warp_bytes), stream, "route_topk"};
    return launch(route_topk_kernel, grid, call, by_score(call), workspace);
}

cudaError_t run_capacity(const RouteCall& call, Pieces& pieces, cudaStream_t stream) {
    // All first slots in the order of tokens, then all second ones: slots are the sort's tokens, and tokens its slots.
    const GroupTables tables = take_group_tables(pieces, call.k, call.logits.rows, call.logits.cols);
    if (pieces.counts_only()) return cudaSuccess;
    const cudaError_t status = launch_group_tables({call.ids, false, 1, call.k}, tables, nullptr, 0, stream);
    if (status != cudaSuccess) return status;
    const Grid grid = {dim3(static_cast<unsigned>(blocks_for(call.logits.rows * call.k, 256, 65536))), dim3(256), 0,
                       stream, "route_capacity"};
    return launch(route_capacity_kernel, grid, call, tables.places, tables.offsets);
}

cudaError_t run(const RouteCall& call, Pieces& pieces, cudaStream_t stream) {
    const auto grid = [&](std::int64_t items, const char* name) {
        return Grid{dim3(static_cast<unsigned>(blocks_for(items, 256, 65536))), dim3(256), 0, stream, name};
    };
    switch (call.kind) {
        case RouteKind::topk: return run_topk(call, pieces, stream);
        case RouteKind::expert_choice: return run_expert_choice(call, pieces, stream);
        case RouteKind::capacity: return run_capacity(call, pieces, stream);
        case RouteKind::hash:
            if (pieces.counts_only()) return cudaSuccess;
            return launch(route_hash_kernel, grid(call.logits.rows * call.k, "route_hash"), call);
        case RouteKind::load: {
            if (pieces.counts_only()) return cudaSuccess;
            const Grid zero = {dim3(static_cast<unsigned>((call.logits.cols + 255) / 256)), dim3(256), 0, stream,
                               "route_zero"};
            const cudaError_t status = launch(route_zero_kernel, zero, call.counts, call.logits.cols);
            return status != cudaSuccess
                       ? status
                       : launch(route_load_kernel, grid(call.logits.rows * call.k, "route_load"), call);
        }
        default: return cudaErrorNotSupported;
    }
}

}  // namespace

const char* refusal(const RouteCall& call) {
    // Their counts are 32-bit.
    if (call.kind == RouteKind::expert_choice && call.logits.rows > most_positions)
        return "more than 2^31 tokens for experts to choose from have no CUDA kernels";
    if (call.kind == RouteKind::capacity &&
        (call.logits.rows > most_positions / (call.k ? call.k : 1) || call.logits.cols > most_positions))
        return "more than 2^31 slots have no CUDA kernels";
    return nullptr;
}

std::int64_t workspace_bytes(const RouteCall& call) {
    Pieces pieces{nullptr};
    run(call, pieces, nullptr);
    return pieces.used;
}

cudaError_t run(const RouteCall& call, void* workspace, cudaStream_t stream) {
    static unsigned char none;  // a call that needs no workspace launches all the same
    Pieces pieces{workspace ? static_cast<unsigned char*>(workspace) : &none};
    return run(call, pieces, stream);
}

}  // namespace fastffn::cuda
