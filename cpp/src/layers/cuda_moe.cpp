// moe on CUDA devices: the CPU's checks, then the plugin.
#include <new>
#include <vector>

#include "cuda/src/abi/moe.hpp"
#include "layers/cuda_calls.hpp"
#include "layers/moe_checks.hpp"

namespace fastffn {

namespace {

using namespace moe_checks;

Status strides_error(const std::string& name, const TensorView& array, const char* expected) {
    return invalid(name + " has shape " + array.shape_string() + " and strides " + array.stride_string() +
                   ", expected " + expected + " on CUDA devices; make it contiguous first");
}

// [..., k]: leading dimensions that are steps of one stride.
Status cuda_slots(const char* name, const TensorView& array, cuda::DeviceSlots* slots) {
    const int last = array.ndim - 1;
    std::int64_t stride = 0, rows = 1;
    for (int i = last - 1; i >= 0; --i) {
        if (array.shape[i] == 1) continue;
        if (rows == 1) stride = array.strides[i];
        else if (array.strides[i] != stride * rows) return strides_error(name, array, "rows of one stride");
        rows *= array.shape[i];
    }
    *slots = {array.data, static_cast<std::int32_t>(array.dtype), stride, array.strides[last]};
    return {};
}

// [count, features] of a stack, without gaps.
Status stack_bias(const std::string& name, const TensorView* bias, cuda::DeviceBias* result) {
    if (!bias) return {};
    if ((bias->shape[1] > 1 && bias->strides[1] != 1) || (bias->shape[0] > 1 && bias->strides[0] != bias->shape[1]))
        return strides_error(name, *bias, "no gaps");
    *result = {bias->data, static_cast<std::int32_t>(bias->dtype)};
    return {};
}

// The last dimension contiguous; dimensions before it are steps of one stride.
Status cuda_table(const std::string& name, const TensorView* array, cuda::DeviceTable* table) {
    if (!array) return {};
    const int last = array->ndim - 1;
    if (array->shape[last] > 1 && array->strides[last] != 1)
        return strides_error(name, *array, "a contiguous last dimension");
    cuda::DeviceSlots rows{};
    if (Status s = cuda_slots(name.c_str(), *array, &rows); !s.ok()) return s;
    *table = {array->data, static_cast<std::int32_t>(array->dtype), rows.row_stride};
    return {};
}

std::string argument(const char* where, const char* name, std::int64_t index, std::int64_t stacks) {
    return where + std::string(name) + (stacks > 1 ? "[" + std::to_string(index) + "]" : "");
}

Status check_headers(const MoeExperts& experts, const char* where, std::int64_t index, std::int64_t stacks) {
    const PackedView* views[] = {&experts.w_up, &experts.w_down, &experts.w_gate};
    const char* names[] = {"w_up", "w_down", "w_gate"};
    for (int i = 0; i < 3; ++i)
        if (i < 2 || views[i]->data || views[i]->bytes)
            if (Status s = check_cuda_header("moe", argument(where, names[i], index, stacks).c_str(), *views[i]);
                !s.ok())
                return s;
    return {};
}

Status cuda_stack(const MoeExperts& experts, const char* where, std::int64_t index, std::int64_t stacks,
                  cuda::MoeStack* stack) {
    const auto name = [&](const char* part) { return argument(where, part, index, stacks); };
    *stack = {};
    stack->up = cuda_matrix(experts.w_up);
    stack->down = cuda_matrix(experts.w_down);
    if (experts.w_gate.data) stack->gate = cuda_matrix(experts.w_gate);
    if (Status s = stack_bias(name("b_up"), experts.b_up, &stack->b_up); !s.ok()) return s;
    if (Status s = stack_bias(name("b_gate"), experts.b_gate, &stack->b_gate); !s.ok()) return s;
    if (Status s = stack_bias(name("b_down"), experts.b_down, &stack->b_down); !s.ok()) return s;
    stack->sub_norm_eps = experts.sub_norm_eps;
    return stack_bias(name("sub_norm"), experts.sub_norm, &stack->sub_norm);
}

}  // namespace

Status cuda_moe(CudaStream stream, const TensorView& x, const TensorView& ids, const TensorView* weights,
                const MoeWeights& layer, const TensorView& y, std::int64_t* load) {
    constexpr const char* operation = "moe";
    const cuda::Plugin* plugin = nullptr;
    if (Status s = find_cuda_plugin(operation, stream, &plugin); !s.ok()) return s;
    for (std::int64_t i = 0; layer.experts && i < layer.stacks; ++i)
        if (Status s = check_headers(layer.experts[i], "", i, layer.stacks); !s.ok()) return s;
    for (std::int64_t i = 0; layer.shared && i < layer.shared_stacks; ++i)
        if (Status s = check_headers(layer.shared[i].experts, "shared ", i, layer.shared_stacks); !s.ok()) return s;
    OpenLayer open;
    open.on_device = true;
    RowsView x_rows, y_rows;
    if (Status s = open_call(x, ids, weights, layer, y, load, &open, &x_rows, &y_rows); !s.ok()) return s;
    cuda::MoeCall call{};
    if (Status s = cuda_rows(operation, "x", x_rows, &call.x); !s.ok()) return s;
    if (Status s = cuda_rows(operation, "out", y_rows, &call.y); !s.ok()) return s;
    if (Status s = cuda_slots("ids", ids, &call.ids); !s.ok()) return s;
    if (weights)
        if (Status s = cuda_slots("weights", *weights, &call.weights); !s.ok()) return s;
    call.picks = Slots{&ids}.picks();
    std::vector<cuda::MoeStack> stacks(static_cast<std::size_t>(layer.stacks + layer.shared_stacks));
    for (std::int64_t i = 0; i < layer.stacks; ++i)
        if (Status s = cuda_stack(layer.experts[i], "", i, layer.stacks, &stacks[static_cast<std::size_t>(i)]); !s.ok())
            return s;
    for (std::int64_t i = 0; i < layer.shared_stacks; ++i) {
        cuda::MoeStack& stack = stacks[static_cast<std::size_t>(layer.stacks + i)];
        if (Status s = cuda_stack(layer.shared[i].experts, "shared ", i, layer.shared_stacks, &stack); !s.ok())
            return s;
        if (Status s = cuda_table(argument("", "shared gate", i, layer.shared_stacks), layer.shared[i].gate,
                                  &stack.gate_vectors);
            !s.ok())
            return s;
    }
    call.stacks = stacks.data();
    call.stack_count = static_cast<std::int32_t>(layer.stacks);
    call.shared_count = static_cast<std::int32_t>(layer.shared_stacks);
    static_assert(sizeof(SpecialExpert) == 1, "kinds go as bytes");
    call.special = reinterpret_cast<const std::uint8_t*>(layer.special.kinds);
    call.special_count = static_cast<std::int32_t>(layer.special.count);
    if (Status s = cuda_table("vectors", layer.special.vectors, &call.vectors); !s.ok()) return s;
    if (Status s = cuda_table("mix", layer.special.mix, &call.mix); !s.ok()) return s;
    call.activation = static_cast<std::int32_t>(layer.activation);
    call.weights_on_input = layer.weights_on_input;
    call.load = load;
    if (Status s = check_workspace(operation, stream, {{"x", &x}, {"out", &y}, {"ids", &ids}, {"weights", weights}});
        !s.ok())
        return s;
    for (std::int64_t i = 0; i < layer.stacks + layer.shared_stacks; ++i) {
        const MoeExperts& experts = i < layer.stacks ? layer.experts[i] : layer.shared[i - layer.stacks].experts;
        if (Status s = check_workspace(operation, stream,
                                       {{"w_up", nullptr, &experts.w_up},
                                        {"w_down", nullptr, &experts.w_down},
                                        {"w_gate", nullptr, &experts.w_gate}});
            !s.ok())
            return s;
    }
    if (call.x.rows == 0 && !load) return {};
    return run_cuda(operation, plugin->moe, stream, call);
}

}  // namespace fastffn
