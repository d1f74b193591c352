// Routers on CUDA devices: the CPU's checks, then the plugin.
#include "core/cpu.hpp"
#include "cuda/src/abi/route.hpp"
#include "layers/cuda_calls.hpp"
#include "routes/topk/checks.hpp"

namespace fastffn {

namespace {

cuda::DeviceVector vector_of(const TensorView* table) {
    if (!table) return {};
    return {table->data, static_cast<std::int32_t>(table->dtype), table->ndim ? table->strides[0] : 1};
}

// What all of them have: ids and weights of [rows, k], for so many experts.
cuda::RouteCall route_call(cuda::RouteKind kind, const TensorView& ids, const TensorView* weights, std::int64_t rows,
                           std::int64_t k, std::int64_t experts) {
    cuda::RouteCall call{};
    call.kind = kind;
    call.logits.rows = rows;
    call.logits.cols = experts;
    call.ids = static_cast<std::int32_t*>(ids.data);
    if (weights) call.weights = static_cast<float*>(weights->data);
    call.k = k;
    return call;
}

}  // namespace

Status cuda_route_topk(CudaStream stream, const TensorView& logits, const TopkOptions& options, const TensorView& ids,
                       const TensorView& weights) {
    constexpr const char* operation = "route_topk";
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    RowsView rows;
    if (Status status = check_topk(logits, options, &rows); !status.ok()) return status;
    if (Status status = check_topk_results(logits, options, ids, weights); !status.ok()) return status;
    cuda::RouteCall call = route_call(cuda::RouteKind::topk, ids, &weights, rows.rows, options.k, rows.cols);
    if (Status status = cuda_rows(operation, "logits", rows, &call.logits); !status.ok()) return status;
    call.score = static_cast<std::int32_t>(options.score);
    call.renormalize = options.renormalize;
    call.scale = options.scale;
    call.bias = vector_of(options.bias);
    call.correction = vector_of(options.correction_bias);
    call.gamma = vector_of(options.gamma);
    call.groups = options.groups;
    call.topk_groups = options.topk_groups ? options.topk_groups : options.groups;
    call.group_score = static_cast<std::int32_t>(options.group_score);
    call.top_p = options.top_p;
    call.norm_eps = options.norm_eps;
    if (Status status = check_workspace(operation, stream, {{"logits", &logits}, {"ids", &ids}, {"weights", &weights}});
        !status.ok())
        return status;
    if (rows.rows == 0) return {};
    return run_cuda(operation, plugin->route, stream, call);
}

Status cuda_route_expert_choice(CudaStream stream, const TensorView& logits, const ExpertChoiceOptions& options,
                                const TensorView& ids, const TensorView& weights) {
    constexpr const char* operation = "route_expert_choice";
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    RowsView rows;
    if (Status status = check_expert_choice(logits, options, &rows); !status.ok()) return status;
    if (Status status = check_expert_choice_results(logits, options, ids, weights); !status.ok()) return status;
    cuda::RouteCall call = route_call(cuda::RouteKind::expert_choice, ids, &weights, rows.rows, options.k, rows.cols);
    if (Status status = cuda_rows(operation, "logits", rows, &call.logits); !status.ok()) return status;
    call.score = static_cast<std::int32_t>(options.score);
    call.capacity = options.capacity;
    if (rows.rows == 0) return {};
    return run_cuda(operation, plugin->route, stream, call);
}

Status cuda_route_hash(CudaStream stream, const TensorView& tokens, const TensorView& table, const TensorView& ids,
                       const TensorView& weights) {
    constexpr const char* operation = "route_hash";
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    if (Status status = check_hash(tokens, table, ids, weights); !status.ok()) return status;
    cuda::RouteCall call = route_call(cuda::RouteKind::hash, ids, &weights, tokens.size(), table.shape[1], 1);
    call.tokens = vector_of(&tokens);
    call.table = vector_of(&table);
    call.vocabulary = table.shape[0];
    if (call.logits.rows == 0) return {};
    return run_cuda(operation, plugin->route, stream, call);
}

Status cuda_limit_capacity(CudaStream stream, const TensorView& ids, const TensorView& weights, std::int64_t experts,
                           std::int64_t capacity) {
    constexpr const char* operation = "limit_capacity";
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    if (Status status = check_capacity(ids, weights, experts, capacity); !status.ok()) return status;
    const std::int64_t k = ids.shape[ids.ndim - 1];
    if (ids.size() == 0) return {};
    cuda::RouteCall call = route_call(cuda::RouteKind::capacity, ids, &weights, ids.size() / k, k, experts);
    call.capacity = capacity;
    return run_cuda(operation, plugin->route, stream, call);
}

Status cuda_expert_load(CudaStream stream, const TensorView& ids, const TensorView& counts) {
    constexpr const char* operation = "expert_load";
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    if (Status status = check_load(ids, counts); !status.ok()) return status;
    cuda::RouteCall call = route_call(cuda::RouteKind::load, ids, nullptr, ids.size(), 1, counts.shape[0]);
    call.counts = static_cast<std::int64_t*>(counts.data);
    return run_cuda(operation, plugin->route, stream, call);
}

}  // namespace fastffn
