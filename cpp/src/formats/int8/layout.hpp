// The int8 payload: [scales f32][column sums int32][panels], each section for out_features rounded up to 16 columns.
//
//   w[o][k] ≈ scale[o] · q[o][k],  scale[o] = max_k |w[o][k]| / 127,  q in [-127, 127], rounded to nearest even
//
// Column sums Σ_k q[o][k] serve instructions whose first operand is unsigned (VPDPBUSD): they multiply q_x + 128 and take
// 128 · sum off again. Included by kernel files: inline code in an anonymous namespace only.
#pragma once

#include "core/kernel.hpp"

namespace fastffn {
namespace {

constexpr float int8_smallest_row = 1e-35f;
// 127 · 127 · depth must fit an int32 accumulator.
constexpr std::int64_t int8_depth_limit = 133144;

struct Int8Layout {
    const std::byte* scales;
    const std::byte* sums;
    const std::byte* panels;
    std::int64_t panel_bytes;
};

inline std::int64_t int8_panel_bytes(std::int64_t in_features) { return round_up(divide_up(in_features, 4), 16) * 64; }

inline Int8Layout int8_layout(const std::byte* payload, std::int64_t out_features, std::int64_t in_features) {
    const std::int64_t section = divide_up(out_features, panel_columns) * 64;
    return {payload, payload + section, payload + 2 * section, int8_panel_bytes(in_features)};
}

}  // namespace
}  // namespace fastffn
