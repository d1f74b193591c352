// The kernels of launch/combine.hpp. All are bound by memory; sums have a fixed order.
#pragma once

#include "kernels/elements.cuh"
#include "launch/combine.hpp"
#include "ptx/shared.cuh"

namespace fastffn::cuda {
namespace {

constexpr int combine_threads = 256, combine_columns = 4 * combine_threads;

// Four numbers of a row that begins at 16 bytes; i is a multiple of 4.
__device__ __forceinline__ float4 load_four(const DeviceRows& rows, std::int64_t i) {
    const auto dtype = static_cast<DType>(rows.dtype);
    if (dtype == DType::f32) return *reinterpret_cast<const float4*>(static_cast<const float*>(rows.data) + i);
    const uint2 bits = *reinterpret_cast<const uint2*>(static_cast<const unsigned short*>(rows.data) + i);
    const auto number = [&](unsigned half) {
        return dtype == DType::bf16 ? __uint_as_float(half << 16)
                                    : __half2float(__ushort_as_half(static_cast<unsigned short>(half)));
    };
    return make_float4(number(bits.x & 0xffff), number(bits.x >> 16), number(bits.y & 0xffff), number(bits.y >> 16));
}

// The first `left` of four numbers, in one store where the rows allow it.
__device__ __forceinline__ void store_four(const DeviceRows& rows, std::int64_t i, std::int64_t left, float4 value) {
    const auto dtype = static_cast<DType>(rows.dtype);
    if (left >= 4 && reinterpret_cast<std::uintptr_t>(rows.data) % 16 == 0 && rows.stride % 4 == 0) {
        if (dtype == DType::f32) {
            *reinterpret_cast<float4*>(static_cast<float*>(rows.data) + i) = value;
            return;
        }
        const auto half = [&](float number) -> unsigned {
            return dtype == DType::bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(number))
                                        : __half_as_ushort(__float2half_rn(number));
        };
        *reinterpret_cast<uint2*>(static_cast<unsigned short*>(rows.data) + i) =
            make_uint2(half(value.x) | half(value.y) << 16, half(value.z) | half(value.w) << 16);
        return;
    }
    store_element(rows.data, dtype, i, value.x);
    if (left > 1) store_element(rows.data, dtype, i + 1, value.y);
    if (left > 2) store_element(rows.data, dtype, i + 2, value.z);
    if (left > 3) store_element(rows.data, dtype, i + 3, value.w);
}

__device__ __forceinline__ void add(float4* sum, float scale, float4 value) {
    sum->x = fmaf(scale, value.x, sum->x);
    sum->y = fmaf(scale, value.y, sum->y);
    sum->z = fmaf(scale, value.z, sum->z);
    sum->w = fmaf(scale, value.w, sum->w);
}

__device__ __forceinline__ float load_slot(const DeviceSlots& slots, std::int64_t token, std::int64_t slot) {
    return slots.data ? load_element(slots.data, static_cast<DType>(slots.dtype),
                                     token * slots.row_stride + slot * slots.slot_stride)
                      : 1.0f;
}

// Dynamic shared memory: order, factor [picks]; scales of vectors [constants]; the scale of x.
// A block has 1024 columns of a token: a token of a decoding step is spread over blocks.
__global__ void __launch_bounds__(combine_threads)
    combine_kernel(const __grid_constant__ CombineArgs args, const __grid_constant__ SpecialKinds special) {
    auto* const order = reinterpret_cast<std::int32_t*>(ptx::dynamic_shared());
    auto* const factor = reinterpret_cast<float*>(order + args.picks);
    float* const vector_scales = factor + args.picks;
    float* const x_scale = vector_scales + args.constants;
    const int thread = static_cast<int>(threadIdx.x);
    const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * combine_columns + 4 * thread;
    const std::int32_t end = args.picks ? *args.end : 0;
    const auto x_dtype = static_cast<DType>(args.x.dtype);
    const std::int64_t token = blockIdx.x;
    const std::int32_t* const places = args.places + token * args.picks;
    int picked = 0;
    for (std::int64_t first = 0; first < args.picks; first += combine_threads) {
        const std::int64_t j = first + thread;
        const std::int32_t place = j < args.picks ? places[j] : -1;
        const bool is_routed = place >= 0 && place < end;
        if (is_routed) {
            int rank = 0;
            for (std::int64_t i = 0; i < args.picks; i++) rank += places[i] >= 0 && places[i] < place;
            order[rank] = place;
            factor[rank] = args.weights_on_input ? 1.0f : load_slot(args.weights, token, j);
        }
        picked += __syncthreads_count(is_routed);
    }
    if (args.special_count && thread == 0) {
        float of_x_sum = 0;
        for (std::int64_t v = 0; v < args.constants; v++) vector_scales[v] = 0;
        for (std::int64_t j = 0; j < args.picks; j++) {
            if (places[j] < end) continue;  // routed or none
            const std::int64_t at = token * args.ids.token_stride + j * args.ids.slot_stride;
            const std::int64_t id = args.ids.is_64 ? static_cast<const std::int64_t*>(args.ids.data)[at]
                                                   : static_cast<const std::int32_t*>(args.ids.data)[at];
            const int kind = special.kinds[id - args.experts];
            const float weight = load_slot(args.weights, token, j);
            if (kind == special_copy) of_x_sum += weight;
            if (kind < special_constant) continue;
            const std::int64_t v = kind - special_constant;
            const float* const mix = args.mix + (token * args.constants + v) * 2;
            const float difference = (mix[1] - mix[0]) * (args.weights_on_input ? weight : 1.0f);
            const float of_x = 1.0f / (1.0f + expf(difference)), of_vector = 1.0f / (1.0f + expf(-difference));
            of_x_sum += weight * of_x;
            vector_scales[v] += args.weights_on_input ? of_vector : weight * of_vector;
        }
        *x_scale = of_x_sum;
    }
    __syncthreads();
    if (column >= args.y.cols) return;
    float4 sum = make_float4(0, 0, 0, 0);
    if (args.special_count) {
        const auto four = [&](const void* data, DType dtype, std::int64_t row) {
            const auto at = [&](int c) {
                return column + c < args.y.cols ? load_element(data, dtype, row + column + c) : 0.0f;
            };
            return make_float4(at(0), at(1), at(2), at(3));
        };
        if (*x_scale != 0) add(&sum, *x_scale, four(args.x.data, x_dtype, token * args.x.stride));
        for (std::int64_t v = 0; v < args.constants; v++)
            if (vector_scales[v] != 0)
                add(&sum, vector_scales[v],
                    four(args.vectors.data, static_cast<DType>(args.vectors.dtype), v * args.vectors.stride));
    }
#pragma unroll 4
    for (int j = 0; j < picked; j++)
        add(&sum, factor[j], load_four(args.routed, static_cast<std::int64_t>(order[j]) * args.routed.stride + column));
    for (std::int64_t s = 0; s < args.shared_count; s++)
        add(&sum, args.gates ? args.gates[token * args.shared_count + s] : 1.0f,
            load_four(args.shared, (s * args.y.rows + token) * args.shared.stride + column));
    store_four(args.y, token * args.y.stride + column, args.y.cols - column, sum);
}

// One warp per token and row of the table.
__global__ void __launch_bounds__(256) dots_kernel(DeviceRows x, DeviceTable table, std::int64_t table_rows,
                                                   bool is_sigmoid, float* out, std::int64_t out_stride) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * 8;
    for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * 8 + threadIdx.x / 32; i < x.rows * table_rows;
         i += warps) {
        const std::int64_t token = i / table_rows, row = i % table_rows;
        float sum = 0;
        if (table.data) {
            for (std::int64_t k = lane; k < x.cols; k += 32)
                sum = fmaf(load_element(x.data, static_cast<DType>(x.dtype), token * x.stride + k),
                           load_element(table.data, static_cast<DType>(table.dtype), row * table.stride + k), sum);
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
            if (is_sigmoid) sum = 1.0f / (1.0f + expf(-sum));
        } else {
            sum = 1;
        }
        if (lane == 0) out[token * out_stride + row] = sum;
    }
}

__global__ void __launch_bounds__(256)
    weighted_rows_kernel(DeviceRows x, DeviceSlots weights, GroupTables tables, DeviceRows rows) {
    for (std::int64_t i = blockIdx.x; i < tables.tokens * tables.slots; i += gridDim.x) {
        const std::int64_t place = tables.places[i], token = i / tables.slots;
        if (place < 0) continue;
        const float weight = load_slot(weights, token, i % tables.slots);
        for (std::int64_t k = threadIdx.x; k < x.cols; k += 256)
            static_cast<float*>(rows.data)[place * rows.stride + k] =
                weight * load_element(x.data, static_cast<DType>(x.dtype), token * x.stride + k);
    }
}

__global__ void __launch_bounds__(256) load_kernel(GroupTables tables, bool adds, std::int64_t* load) {
    const std::int64_t g = static_cast<std::int64_t>(blockIdx.x) * 256 + threadIdx.x;
    if (g >= tables.groups) return;
    const std::int64_t slots = tables.offsets[g + 1] - tables.offsets[g];
    load[g] = adds ? load[g] + slots : slots;
}

}  // namespace
}  // namespace fastffn::cuda
