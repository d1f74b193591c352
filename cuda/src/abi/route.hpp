// Routers on a device: what the host hands to the plugin. All pointers are the device's.
#pragma once

#include "../abi.hpp"

namespace fastffn::cuda {

// [n] of any stride.
struct DeviceVector {
    const void* data;  // nullptr: none
    std::int32_t dtype;
    std::int64_t stride;  // elements
};

enum class RouteKind : std::int32_t {
    topk,           // logits → ids, weights
    expert_choice,  // logits, capacity → ids, weights
    hash,           // tokens, table → ids, weights
    capacity,       // ids, weights and capacity, in place
    load,           // ids → counts
};

struct RouteCall {
    RouteKind kind;
    DeviceRows logits;  // [rows, experts]; of the other kinds only these two numbers
    std::int32_t* ids;  // [rows, k], contiguous, and so are weights
    float* weights;
    std::int64_t k;

    // topk and expert_choice; see fastffn/route.hpp
    std::int32_t score;  // fastffn::RouterScore
    std::int32_t renormalize;
    float scale;
    DeviceVector bias, correction, gamma;  // f32, f16 or bf16
    std::int64_t groups, topk_groups;      // topk_groups == groups: all stay
    std::int32_t group_score;              // fastffn::GroupScore
    double top_p;                          // 1: off
    float norm_eps;

    std::int64_t capacity;  // tokens per expert

    DeviceVector tokens;      // i32 or i64 [rows], contiguous
    DeviceVector table;       // i32 or i64 [vocabulary, k], contiguous
    std::int64_t vocabulary;  // a token outside has empty slots
    std::int64_t* counts;     // [experts]
};

}  // namespace fastffn::cuda
