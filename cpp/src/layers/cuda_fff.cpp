// fff and fff_route on CUDA devices: the CPU's checks, then the plugin.
#include <cstring>

#include "cuda/src/abi/fff.hpp"
#include "layers/cuda_calls.hpp"
#include "layers/fff_open.hpp"

namespace fastffn {

namespace {

Status invalid(const char* operation, const std::string& text) {
    return {StatusCode::invalid_argument, std::string(operation) + ": " + text};
}

Status check_tree(const char* operation, const PackedView& tree) {
    if (!tree.data || !tree.header) return invalid(operation, "tree has no header on the host; see read_device_tree()");
    if (reinterpret_cast<std::uintptr_t>(tree.data) % 16 != 0)
        return invalid(operation, "tree is not 16-byte aligned; copy it to memory of its own");
    return {};
}

cuda::DeviceTree device_tree(const PackedView& packed, const PackedTree& tree) {
    const TreeHeader& header = tree.header;
    return {static_cast<const std::byte*>(packed.data) + sizeof header,
            tree.all_nodes() ? 1 : 0,
            tree.tie() == Tie::right ? 1 : 0,
            header.format,
            header.route_format,
            header.trees,
            header.depth,
            header.d_model,
            header.d_out};
}

Status must_be_contiguous(const char* name, const TensorView* view) {
    if (!view || is_contiguous(*view)) return {};
    return invalid("fff", std::string(name) + " has shape " + view->shape_string() + " and strides " +
                              view->stride_string() + ", expected a contiguous array on CUDA devices");
}

Status stack_bias(const char* name, const TensorView* bias, cuda::DeviceBias* result) {
    if (!bias) return {};
    if (Status status = must_be_contiguous(name, bias); !status.ok()) return status;
    *result = {bias->data, static_cast<std::int32_t>(bias->dtype)};
    return {};
}

// Every check of a call, and the call as the plugin takes it; `segments` holds the master's.
Status plan_call(const TensorView& x, const FffWeights& weights, const TensorView& y, cuda::FffCall* call,
                 std::vector<cuda::DeviceSegment>* segments) {
    constexpr const char* operation = "fff";
    if (Status status = check_tree(operation, weights.tree); !status.ok()) return status;
    const FfnWeights* const master = weights.master;
    const struct {
        const char* name;
        const PackedView* packed;
    } stacks[] = {{"w_up", &weights.w_up},
                  {"w_down", &weights.w_down},
                  {"master's w_up", master ? &master->w_up : nullptr},
                  {"master's w_down", master ? &master->w_down : nullptr},
                  {"master's w_gate", master ? &master->w_gate : nullptr}};
    for (const auto& stack : stacks)
        if (stack.packed && stack.packed->data)
            if (Status status = check_cuda_header(operation, stack.name, *stack.packed); !status.ok()) return status;
    FffCall opened;
    opened.on_device = true;
    if (Status status = open_fff(x, weights, &y, &opened); !status.ok()) return status;
    if (Status status = cuda_rows(operation, "x", opened.x, &call->x); !status.ok()) return status;
    if (Status status = cuda_rows(operation, "out", opened.y, &call->y); !status.ok()) return status;
    call->tree = device_tree(weights.tree, opened.tree.tree);
    if (opened.has_leaves) {
        call->up = cuda_matrix(weights.w_up);
        call->down = cuda_matrix(weights.w_down);
        if (Status status = stack_bias("b_up", weights.b_up, &call->b_up); !status.ok()) return status;
        if (Status status = stack_bias("b_down", weights.b_down, &call->b_down); !status.ok()) return status;
    }
    call->activation = static_cast<std::int32_t>(weights.activation);
    call->plan = static_cast<std::int32_t>(weights.plan);
    if (weights.leaf) {
        if (Status status = must_be_contiguous("leaf", weights.leaf); !status.ok()) return status;
        call->leaf = weights.leaf->data;
        call->leaf_dtype = static_cast<std::int32_t>(weights.leaf->dtype);
    }
    call->tree_share = opened.tree_share;
    call->master_share = opened.master_share;
    if (!opened.has_master) return {};
    return cuda_ffn_weights("fff: master", *master, &opened.master, &call->master, segments);
}

}  // namespace

Status read_device_tree(CudaStream stream, const void* data, std::int64_t bytes, DeviceTreeHeader* header) {
    constexpr const char* operation = "device_tree";
    static_assert(sizeof header->bytes == sizeof(TreeHeader), "the first bytes are the header");
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    if (!data || bytes < static_cast<std::int64_t>(sizeof(TreeHeader)))
        return {StatusCode::corrupt, std::string(operation) + ": tree has " + std::to_string(bytes) +
                                         " bytes, less than the 128-byte header of a packed tree"};
    cuda::PluginError error;
    plugin->read(stream.device, stream.stream, data, header->bytes, sizeof header->bytes, &error);
    if (Status status = cuda_status(operation, error); !status.ok()) return status;
    PackedTree tree;
    return open_tree({data, bytes, header->as_header()}, operation, &tree, tree_device_layout);
}

Status cuda_fff(CudaStream stream, const TensorView& x, const FffWeights& weights, const TensorView& y) {
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin("fff", stream, &plugin); !status.ok()) return status;
    cuda::FffCall call{};
    std::vector<cuda::DeviceSegment> segments;
    if (Status status = plan_call(x, weights, y, &call, &segments); !status.ok()) return status;
    if (Status status = check_workspace("fff", stream,
                                        {{"x", &x},
                                         {"out", &y},
                                         {"leaf", weights.leaf},
                                         {"tree", nullptr, &weights.tree},
                                         {"w_up", nullptr, &weights.w_up},
                                         {"w_down", nullptr, &weights.w_down}});
        !status.ok())
        return status;
    if (call.x.rows == 0) return {};
    return run_cuda("fff", plugin->fff, stream, call);
}

Status cuda_fff_route(CudaStream stream, const TensorView& x, const PackedView& tree, const TensorView& leaf,
                      const TensorView* margin, const TensorView* z, FffPlan plan) {
    constexpr const char* operation = "fff_route";
    const cuda::Plugin* plugin = nullptr;
    if (Status status = find_cuda_plugin(operation, stream, &plugin); !status.ok()) return status;
    if (Status status = check_tree(operation, tree); !status.ok()) return status;
    TreeCall opened;
    RowsView rows;
    if (Status status = open_route(operation, tree, x, plan, &opened, &rows, true); !status.ok()) return status;
    if (Status status = check_route_results(x, tree, opened, leaf, margin, z); !status.ok()) return status;
    cuda::FffRouteCall call{};
    if (Status status = cuda_rows(operation, "x", rows, &call.x); !status.ok()) return status;
    call.tree = device_tree(tree, opened.tree);
    call.plan = static_cast<std::int32_t>(plan);
    call.leaf = static_cast<std::int32_t*>(leaf.data);
    call.margin = margin ? static_cast<float*>(margin->data) : nullptr;
    call.z = z ? static_cast<float*>(z->data) : nullptr;
    if (Status status = check_workspace(
            operation, stream, {{"x", &x}, {"leaf", &leaf}, {"margin", margin}, {"z", z}, {"tree", nullptr, &tree}});
        !status.ok())
        return status;
    if (call.x.rows == 0) return {};
    return run_cuda(operation, plugin->fff_route, stream, call);
}

}  // namespace fastffn
