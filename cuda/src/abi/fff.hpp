// Trees: fff and fff_route. See abi.hpp; the mathematics is in fastffn/fff.hpp.
#pragma once

#include "../abi.hpp"

namespace fastffn::cuda {

// Trees packed for devices (cuda/src/layout/tree.hpp), their payload in device memory.
struct DeviceTree {
    const void* payload;        // 16-byte aligned
    std::int32_t all_nodes;     // 1: the all-node form; 0: the leaf form
    std::int32_t ties_right;    // 1: go right where z equals the threshold
    std::int32_t format;        // fastffn::Format of the output rows: f32, f16, bf16 or int8
    std::int32_t route_format;  // of the rows that decide
    std::int64_t trees, depth;
    std::int64_t d_model, d_out;  // d_out: 0 in the leaf form
};

struct FffCall {
    DeviceRows x, y;
    DeviceTree tree;
    DeviceMatrix up, down;  // stacks of trees · 2^depth leaves; payload nullptr: the all-node form
    DeviceBias b_up, b_down;
    std::int32_t activation;         // fastffn::Activation
    std::int32_t plan;               // fastffn::FffPlan
    const void* leaf;                // forced leaves [tokens, trees], contiguous; nullptr: route
    std::int32_t leaf_dtype;         // fastffn::DType: i32 or i64
    FfnCall master;                  // without its rows; master.up.payload nullptr: none
    float tree_share, master_share;  // y = tree_share · tree + master_share · master
};

// Results [tokens, trees] and [tokens, trees, levels], contiguous.
struct FffRouteCall {
    DeviceRows x;
    DeviceTree tree;
    std::int32_t plan;
    std::int32_t* leaf;
    float *margin, *z;  // nullptr: not wanted
};

}  // namespace fastffn::cuda
