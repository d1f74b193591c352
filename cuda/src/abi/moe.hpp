// moe on a device: what the host hands to the plugin. Pointers to stacks and kinds are the host's, all others the device's.
#pragma once

#include "../abi.hpp"

namespace fastffn::cuda {

// [rows, slots] of any strides, in elements.
struct DeviceSlots {
    const void* data;  // nullptr: none
    std::int32_t dtype;
    std::int64_t row_stride, slot_stride;
};

// [rows, cols] that are not written, the last dimension contiguous.
struct DeviceTable {
    const void* data;  // nullptr: none
    std::int32_t dtype;
    std::int64_t stride;  // elements
};

// Experts of one shape and format; biases [count, out_features].
struct MoeStack {
    DeviceMatrix up, gate, down;
    DeviceBias b_up, b_gate, b_down;
    DeviceBias sub_norm;  // γ [count, d_ff]
    float sub_norm_eps;
    DeviceTable gate_vectors;  // of shared experts [count, d_model]; without: weight 1
};

struct MoeCall {
    DeviceRows x, y;
    DeviceSlots ids;      // i32 or i64; ids that name nothing are empty slots
    DeviceSlots weights;  // f32, f16 or bf16; without: every pick counts 1
    std::int64_t picks;
    const MoeStack* stacks;  // [stack_count + shared_count], shared ones behind
    std::int32_t stack_count, shared_count;
    const std::uint8_t* special;  // [special_count] fastffn::SpecialExpert
    std::int32_t special_count;
    DeviceTable vectors, mix;  // of the constant ones: [constants, d_model], [2 · constants, d_model]
    std::int32_t activation;   // fastffn::Activation
    std::int32_t weights_on_input;
    std::int64_t* load;  // [experts + special], overwritten; nullptr: not wanted
};

}  // namespace fastffn::cuda
