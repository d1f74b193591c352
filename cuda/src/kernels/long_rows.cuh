// Rows that shared memory does not hold, as f32 in device memory: a pass over them for a norm, one for every four levels of butterflies,
// and one for H_K. kernels/transform_rows.cuh has done the levels of their parts.
#pragma once

#include "kernels/transform_rows.cuh"

namespace fastffn::cuda {
namespace {

constexpr int long_threads = 256;

struct LongRows {
    float* rows;
    std::int64_t stride, count, depth;
};

// f32 rows of RMSNorm(x). One block a row, which reads it three times: from L2 after the first.
__global__ void __launch_bounds__(long_threads)
    norm_rows_kernel(LongRows rows, const void* x, DType dtype, std::int64_t x_stride, std::int64_t first,
                     RowNorm norm) {
    const TeamReduction team = {0, long_threads / 32};
    const std::int64_t r = blockIdx.x;
    const std::int64_t token = first + r, x0 = token * x_stride;
    const std::int64_t group = norm.offsets ? group_of(norm.offsets, norm.groups, token) : 0;
    const bool exists = !norm.offsets || group < norm.groups;
    const std::int64_t depth = exists ? rows.depth : 0;
    unsigned largest = 0;
    for (std::int64_t k = threadIdx.x; k < depth; k += long_threads)
        largest = max(largest, __float_as_uint(load_element(x, dtype, x0 + k)) & 0x7fffffffu);
    largest = team.largest(largest);
    const int biased = min(max(static_cast<int>(largest >> 23), 1), 253);
    const float down = __int_as_float((254 - biased) << 23);
    float squares = 0;
    for (std::int64_t k = threadIdx.x; k < depth; k += long_threads) {
        const float v = load_element(x, dtype, x0 + k) * down;
        squares = fmaf(v, v, squares);
    }
    const float inverse =
        inverse_norm(team, static_cast<int>(threadIdx.x), largest, squares, biased - 127, norm.mean_of, norm.eps);
    for (std::int64_t k = threadIdx.x; k < depth; k += long_threads)
        rows.rows[r * rows.stride + k] =
            load_element(x, dtype, x0 + k) * inverse * load_element(norm.gamma, norm.dtype, group * rows.depth + k);
}

// Levels of 2^log_step columns and further, radix of them together; neighbouring threads have neighbouring columns.
template <int radix>
__global__ void __launch_bounds__(long_threads) far_butterflies_kernel(LongRows rows, int log_step) {
    const std::int64_t step = std::int64_t{1} << log_step, units = rows.depth / radix;
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * long_threads + threadIdx.x; i < rows.count * units;
         i += static_cast<std::int64_t>(gridDim.x) * long_threads) {
        const std::int64_t row = i / units, unit = i - row * units;
        float* const at = rows.rows + row * rows.stride + (unit >> log_step) * radix * step + (unit & (step - 1));
        float v[radix];
#pragma unroll
        for (int r = 0; r < radix; r++) v[r] = at[r * step];
#pragma unroll
        for (int half = 1; half < radix; half *= 2) butterflies(v, half);
#pragma unroll
        for (int r = 0; r < radix; r++) at[r * step] = v[r];
    }
}

// H_K across the parts, in place: blocks share a row's columns.
__global__ void __launch_bounds__(long_threads)
    mix_long_rows_kernel(LongRows rows, int order, const __grid_constant__ OrderSigns signs) {
    const uint4* const table = make_signs(ptx::dynamic_shared(), signs, order);
    const std::int64_t power = rows.depth / order;
    const int warp = static_cast<int>(blockIdx.x) * (long_threads / 32) + static_cast<int>(threadIdx.x) / 32;
    for (std::int64_t row = blockIdx.y; row < rows.count; row += gridDim.y) {
        float* const at = rows.rows + row * rows.stride;
        mix_parts(
            table, order, power, warp, static_cast<int>(gridDim.x) * (long_threads / 32),
            [&](int part, std::int64_t column) { return at[part * power + column]; },
            [&](int part, std::int64_t column, float value) { at[part * power + column] = value; });
    }
}

}  // namespace
}  // namespace fastffn::cuda
