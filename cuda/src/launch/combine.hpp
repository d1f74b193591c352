// What a mixture of experts needs beside its products: weighted inputs, weights that depend on x, and the sum over the picks.
#pragma once

#include <cuda_runtime.h>

#include "abi/moe.hpp"
#include "launch/group_tables.hpp"

namespace fastffn::cuda {

// Kinds of special experts as kernels see them: zero, copy, or 2 + the number of the constant expert.
constexpr int most_special = 128;
struct SpecialKinds {
    std::uint8_t kinds[most_special];
};
constexpr std::uint8_t special_zero = 0, special_copy = 1, special_constant = 2;

// Shared memory of a block has place for so many picks.
constexpr std::int64_t most_picks = 4096;

// y[t] = x_scale · x[t] + Σ_v scale_v · vectors[v]  (special experts, by slot)
//      + Σ_j weights[t, j] · routed[position of slot j]  (in ascending order of positions, so of ids)
//      + Σ_s gates[t, s] · shared[s, t]
struct CombineArgs {
    DeviceRows x, y;
    DeviceRows routed;  // [positions, d_out], rows of whole 16 bytes
    DeviceRows shared;  // [shared_count · tokens, d_out], likewise: row s · tokens + t
    std::int64_t shared_count;
    const float* gates;          // [tokens, shared_count]; nullptr: 1
    const std::int32_t* places;  // [tokens, picks]
    const std::int32_t* end;     // [1]: positions from there on are special experts'
    SlotIds ids;
    DeviceSlots weights;  // data == nullptr: 1
    std::int64_t picks, experts, special_count;
    bool weights_on_input;  // they were multiplied with x; only special experts still need them
    std::int64_t constants;
    DeviceTable vectors;
    const float* mix;  // [tokens, 2 · constants]: W_c · x
};
cudaError_t launch_combine(const CombineArgs& args, const SpecialKinds& special, cudaStream_t stream);

// out[t · out_stride + r] = table[r] · x[t], or σ of it; without a table 1.
cudaError_t launch_dots(const DeviceRows& x, const DeviceTable& table, std::int64_t table_rows, bool is_sigmoid,
                        float* out, std::int64_t out_stride, cudaStream_t stream);

// rows[position of (t, j)] = weights[t, j] · x[t], f32.
cudaError_t launch_weighted_rows(const DeviceRows& x, const DeviceSlots& weights, const GroupTables& tables,
                                 const DeviceRows& rows, cudaStream_t stream);

// load[e] = slots of group e; or adds them to it.
cudaError_t launch_load(const GroupTables& tables, bool adds, std::int64_t* load, cudaStream_t stream);

}  // namespace fastffn::cuda
