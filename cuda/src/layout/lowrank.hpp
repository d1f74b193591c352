// Pairs of factors packed for devices: u [rank, in_features], then v [out_features, rank], each as layout.hpp has a matrix of the
// factors' format, at a multiple of 64 bytes. For int8, u has a scale per row and 256 columns, as on the CPU: f32 [blocks, rank] in place
// of one per row.
//
// Header: parameters[0] is the rank; parameters[1] the factors' format, and above its 8 bits 24 of a hash of u, of which flags
// has 32 more: the host tells by them, without reading the device's memory, that w_gate and w_up have the same u.
#pragma once

#include "../layout.hpp"

namespace fastffn::cuda {

constexpr int format_lowrank = 6;
constexpr std::int64_t lowrank_block_columns = 256;

constexpr int lowrank_factors_of(std::uint32_t parameter) { return static_cast<int>(parameter & 255); }
constexpr std::uint32_t lowrank_with_hash(std::uint32_t factors, std::uint64_t hash) {
    return (factors & 255) | static_cast<std::uint32_t>(hash >> 40) << 8;
}

struct LowRankLayout {
    DeviceLayout inner, outer;
    std::int64_t outer_offset = 0, blocks = 0;
    std::int64_t bytes = 0;  // of one pair, a multiple of 64; 0: not for devices
    const char* reason = "";
};

constexpr LowRankLayout lowrank_layout(std::uint32_t rank, int factors, std::int64_t out_features,
                                       std::int64_t in_features) {
    LowRankLayout layout;
    if (factors != format_f32 && factors != format_f16 && factors != format_bf16 && factors != format_int8) {
        layout.reason = "factors of this format have no CUDA kernels";
        return layout;
    }
    layout.blocks = (in_features + lowrank_block_columns - 1) / lowrank_block_columns;
    layout.inner = device_layout(factors, 0, 0, rank, in_features);
    layout.outer = device_layout(factors, 0, 0, out_features, rank);
    if (factors == format_int8) layout.inner.bytes = layout.inner.scales_offset + whole_lines(layout.blocks * rank * 4);
    layout.outer_offset = layout.inner.bytes;
    layout.bytes = layout.outer_offset + layout.outer.bytes;
    return layout;
}

}  // namespace fastffn::cuda
