// Rows through RMSNorm and Hadamard transform to floats or codes, whole in shared memory: each byte of x is read once and each of the
// result written once.
//
//   team      the threads of one row: whole warps, 32 columns a thread (8 where rows are few); a block of several teams has several rows
//   vector    8 neighbouring columns, what a thread loads and stores; butterflies of 2, 4 and 8 happen in its registers
//   round     up to 32 columns a power of two apart in a thread's registers: five levels of butterflies for one pass over shared memory
//   H_K       kernels/order_matrix.cuh, on the row in shared memory
//
// Butterflies are those of the CPU in its order, so without H_K a row has its very bits.
//
// Estimate for 4096 bf16 columns on an H200: shared memory moves each value six times, 770 cycles of a multiprocessor; its share
// of HBM takes 790. H_172 keeps integer tensor cores busy for about as long as HBM moves its row.
#pragma once

#include "kernels/elements.cuh"
#include "kernels/order_matrix.cuh"
#include "kernels/row_code.cuh"
#include "kernels/team.cuh"
#include "launch/transform.hpp"
#include "ptx/dependent.cuh"
#include "ptx/shared.cuh"

namespace fastffn::cuda {
namespace {

constexpr int transform_threads = 768, mix_threads = 384;  // at most; 80 and 168 registers

struct TransformArgs {
    const void* x;
    std::int64_t x_stride, rows;
    const void* gamma;
    const std::int32_t* offsets;
    void* out;
    float* scales;
    std::int32_t* sums;
    std::int64_t groups_of_gamma, mean_of;
    std::int64_t out_stride, out_bytes;  // bytes; parts of a row lie side by side
    std::int64_t group, groups;
    int depth, team, row_floats;
    int log_power, order;  // 2^log_power columns a part
    int parts_per_row;     // rows that are parts of a row of x: row r is part r % parts of x's row r / parts
    float scale, eps;
    DType dtype, gamma_dtype, to;
    bool transforms, is_code, interleaved;
    RowRule rule;
};

// Where column i of a row lies: 8 words further apart every 256, so that neither rounds 8 columns apart nor those 256 and more meet
// one bank.
__device__ __forceinline__ int place(int i) { return i + (i >> 8) * 8; }

struct Vector {
    float v[8];
};

// 8 columns as loaded: 16-bit types fill `low`.
struct RawVector {
    uint4 low, high;
};

__device__ __forceinline__ RawVector load_raw(const void* data, DType dtype, std::int64_t at) {
    const uint4* const from =
        reinterpret_cast<const uint4*>(static_cast<const unsigned char*>(data) + at * (dtype == DType::f32 ? 4 : 2));
    RawVector raw;
    raw.low = from[0];
    raw.high = dtype == DType::f32 ? from[1] : make_uint4(0, 0, 0, 0);
    return raw;
}

__device__ __forceinline__ float2 two_of(DType dtype, unsigned word) {
    if (dtype == DType::bf16) return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
    return make_float2(__half2float(__ushort_as_half(static_cast<unsigned short>(word & 0xffffu))),
                       __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16))));
}

__device__ __forceinline__ Vector floats_of(DType dtype, const RawVector& raw) {
    Vector x;
    const unsigned words[8] = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                               raw.high.x, raw.high.y, raw.high.z, raw.high.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 two = two_of(dtype, words[i]);
        x.v[2 * i] = two.x;
        x.v[2 * i + 1] = two.y;
    }
    if (dtype == DType::f32)
#pragma unroll
        for (int i = 0; i < 8; i++) x.v[i] = __uint_as_float(words[i]);
    return x;
}

// Columns that there are, and zeros.
__device__ __forceinline__ Vector load_few(const void* data, DType dtype, std::int64_t at, int count) {
    Vector x;
#pragma unroll
    for (int i = 0; i < 8; i++) x.v[i] = i < count ? load_element(data, dtype, at + i) : 0.0f;
    return x;
}

// Half the lanes store or load their second four columns first: eight lanes then cover all banks.
__device__ __forceinline__ void put(float* row, int vector, const Vector& x) {
    float* const at = row + place(8 * vector);
    const bool swapped = threadIdx.x / 4 % 2 != 0;
    const float4 low = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]), high = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
    *reinterpret_cast<float4*>(at + (swapped ? 4 : 0)) = swapped ? high : low;
    *reinterpret_cast<float4*>(at + (swapped ? 0 : 4)) = swapped ? low : high;
}

__device__ __forceinline__ Vector get(const float* row, int vector) {
    const float* const at = row + place(8 * vector);
    const bool swapped = threadIdx.x / 4 % 2 != 0;
    const float4 first = *reinterpret_cast<const float4*>(at + (swapped ? 4 : 0));
    const float4 second = *reinterpret_cast<const float4*>(at + (swapped ? 0 : 4));
    const float4 low = swapped ? second : first, high = swapped ? first : second;
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
}

template <int count>
__device__ __forceinline__ void butterflies(float (&v)[count], int half) {
#pragma unroll
    for (int i = 0; i < count; i++) {
        if (i & half) continue;
        const float a = v[i], b = v[i + half];
        v[i] = a + b;
        v[i + half] = a - b;
    }
}

// x · scale and the levels within a vector.
__device__ __forceinline__ void first_levels(Vector& x, const TransformArgs& args) {
    if (!args.transforms) return;
#pragma unroll
    for (int i = 0; i < 8; i++) x.v[i] = __fmul_rn(x.v[i], args.scale);  // no multiply-add: the CPU rounds here
    if (args.log_power > 0) butterflies(x.v, 1);
    if (args.log_power > 1) butterflies(x.v, 2);
    if (args.log_power > 2) butterflies(x.v, 4);
}

// Levels of 2^log_step columns and further, radix of them together. Both are known to the compiler: addresses then take one register.
template <int radix, int log_step>
__device__ __forceinline__ void round_of(float* row, int depth, int thread, int team) {
    constexpr int step = 1 << log_step, apart = step < 256 ? step : step + step / 32;  // in place()
#pragma unroll 1
    for (int unit = thread; unit < depth / radix; unit += team) {
        float* const at = row + place((unit >> log_step) * radix * step + (unit & (step - 1)));
        float v[radix];
#pragma unroll
        for (int r = 0; r < radix; r++) v[r] = at[r * apart];
#pragma unroll
        for (int half = 1; half < radix; half *= 2) butterflies(v, half);
#pragma unroll
        for (int r = 0; r < radix; r++) at[r * apart] = v[r];
    }
}

template <int log_step>
__device__ __forceinline__ void round_of(int levels, float* row, int depth, int thread, int team) {
    if (levels == 1) round_of<2, log_step>(row, depth, thread, team);
    if (levels == 2) round_of<4, log_step>(row, depth, thread, team);
    if constexpr (log_step <= 8) {  // 2^15 columns are all that shared memory holds
        if (levels == 3) round_of<8, log_step>(row, depth, thread, team);
        if (levels == 4) round_of<16, log_step>(row, depth, thread, team);
        if (levels >= 5) round_of<32, log_step>(row, depth, thread, team);
    }
}

template <bool has_order>
__device__ __forceinline__ void transform_rows(const TransformArgs& args, const OrderSigns* signs) {
    ptx::let_next_launch_begin();
    float* const shared = reinterpret_cast<float*>(ptx::dynamic_shared());
    const int team_index = static_cast<int>(threadIdx.x) / args.team, teams = static_cast<int>(blockDim.x) / args.team;
    const int thread = static_cast<int>(threadIdx.x) - team_index * args.team, lane = thread % 32;
    const TeamReduction team = {team_index * args.team / 32, args.team / 32};
    float* const row = shared + team_index * args.row_floats;
    const int depth = args.depth, vectors = (depth + 7) / 8;
    const int x_bytes = args.dtype == DType::f32 ? 4 : 2;
    const bool x_aligned = depth % 8 == 0 && reinterpret_cast<std::uintptr_t>(args.x) % 16 == 0 &&
                           (args.x_stride * x_bytes % 16 == 0 || args.rows <= args.parts_per_row);
    const bool gamma_aligned = depth % 8 == 0 && reinterpret_cast<std::uintptr_t>(args.gamma) % 16 == 0;
    const uint4* table = nullptr;
    if constexpr (has_order) table = make_signs(shared + teams * args.row_floats, *signs, args.order);
    for (std::int64_t row0 = static_cast<std::int64_t>(blockIdx.x) * teams; row0 < args.rows;
         row0 += static_cast<std::int64_t>(gridDim.x) * teams) {
        const std::int64_t token = row0 + team_index;
        std::int64_t gamma0 = 0;
        bool exists = token < args.rows;
        if (args.offsets && exists) {
            const std::int64_t group = group_of(args.offsets, args.groups_of_gamma, token);
            exists = group < args.groups_of_gamma;
            gamma0 = group * depth;
        }
        const std::int64_t x0 = token / args.parts_per_row * args.x_stride + token % args.parts_per_row * depth;
        unsigned largest = 0;
        // Two vectors are on their way at once.
#pragma unroll 1
        for (int first = thread; first < vectors; first += 2 * args.team) {
            RawVector raw[2];
#pragma unroll
            for (int u = 0; u < 2; u++) {
                const int vector = first + u * args.team;
                if (x_aligned && exists && vector < vectors)
                    raw[u] = load_raw(args.x, args.dtype, x0 + 8 * static_cast<std::int64_t>(vector));
            }
#pragma unroll
            for (int u = 0; u < 2; u++) {
                const int vector = first + u * args.team;
                if (vector >= vectors) continue;
                Vector x = x_aligned && exists
                               ? floats_of(args.dtype, raw[u])
                               : load_few(args.x, args.dtype, x0 + 8 * vector, exists ? depth - 8 * vector : 0);
                if (args.gamma) {
#pragma unroll
                    for (int i = 0; i < 8; i++) largest = max(largest, __float_as_uint(x.v[i]) & 0x7fffffffu);
                } else {
                    first_levels(x, args);
                }
                put(row, vector, x);
            }
        }
        if (args.gamma) {
            largest = team.largest(largest);
            const int biased = min(max(static_cast<int>(largest >> 23), 1), 253);
            const float down = __int_as_float((254 - biased) << 23);  // 2^(127 - biased)
            float squares = 0;
#pragma unroll 1
            for (int vector = thread; vector < vectors; vector += args.team) {
                const Vector x = get(row, vector);
#pragma unroll
                for (int i = 0; i < 8; i++) squares = fmaf(x.v[i] * down, x.v[i] * down, squares);
            }
            const float inverse = inverse_norm(team, thread, largest, squares, biased - 127, args.mean_of, args.eps);
#pragma unroll 1
            for (int vector = thread; vector < vectors; vector += args.team) {
                const int count = exists ? depth - 8 * vector : 0;
                const Vector gamma =
                    gamma_aligned && exists
                        ? floats_of(args.gamma_dtype, load_raw(args.gamma, args.gamma_dtype, gamma0 + 8 * vector))
                        : load_few(args.gamma, args.gamma_dtype, gamma0 + 8 * vector, count);
                Vector x = get(row, vector);
#pragma unroll
                for (int i = 0; i < 8; i++) x.v[i] = i < count ? x.v[i] * inverse * gamma.v[i] : 0.0f;
                first_levels(x, args);
                put(row, vector, x);
            }
        }
        if (args.log_power > 3) {
            __syncthreads();
            round_of<3>(args.log_power - 3, row, depth, thread, args.team);
        }
        if (args.log_power > 8) {
            __syncthreads();
            round_of<8>(args.log_power - 8, row, depth, thread, args.team);
        }
        if (args.log_power > 13) {
            __syncthreads();
            round_of<13>(args.log_power - 13, row, depth, thread, args.team);
        }
        if constexpr (has_order) {
            __syncthreads();
            const int log_power = args.log_power;
            mix_parts(
                table, args.order, std::int64_t{1} << log_power, thread / 32, args.team / 32,
                [&](int part, std::int64_t column) {
                    return row[place((part << log_power) + static_cast<int>(column))];
                },
                [&](int part, std::int64_t column, float value) {
                    row[place((part << log_power) + static_cast<int>(column))] = value;
                });
        }
        __syncthreads();
        unsigned char* const out = static_cast<unsigned char*>(args.out) +
                                   token / args.parts_per_row * args.out_stride +
                                   token % args.parts_per_row * args.out_bytes;
        if (!args.is_code) {
            const int bytes = args.to == DType::f32 ? 4 : 2;
            const auto elements = static_cast<int>(args.out_bytes / bytes);
            const bool aligned = reinterpret_cast<std::uintptr_t>(args.out) % 16 == 0 && args.out_stride % 16 == 0 &&
                                 (args.out_bytes % 16 == 0 || args.parts_per_row == 1);
#pragma unroll 1
            for (int vector = thread; exists && 8 * vector < elements; vector += args.team) {
                Vector x = {};
                if (vector < vectors) x = get(row, vector);
                const int left = elements - 8 * vector;
                if (aligned && left >= 8) {
                    store_vector(out, args.to, vector, x.v);
                } else {
#pragma unroll
                    for (int i = 0; i < 8; i++)
                        if (i < left) store_element(out, args.to, 8 * static_cast<std::int64_t>(vector) + i, x.v[i]);
                }
            }
        } else {
            unsigned magnitude = 0;
            float sum = 0;
#pragma unroll 1
            for (int vector = thread; vector < vectors; vector += args.team) {
                const Vector x = get(row, vector);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    magnitude = max(magnitude, __float_as_uint(x.v[i]) & 0x7fffffffu);
                    sum += fabsf(x.v[i]);
                }
            }
            magnitude = team.largest(magnitude);
            if (args.rule == RowRule::mean4 || args.rule == RowRule::mean4_int4) sum = team.sum(sum);
            const bool finite = magnitude < 0x7f800000u;
            const RowCode code = row_code(args.rule, __uint_as_float(magnitude), sum, depth, finite);
            if (thread == 0 && exists) args.scales[token] = code.scale;
            const auto out_vectors = static_cast<int>((args.out_bytes + 7) / 8);
            const int lanes_of_group = static_cast<int>(args.group / 8);
            int total = 0;
            // Whole warps: groups are summed over their lanes.
#pragma unroll 1
            for (int first = thread - lane; first < out_vectors; first += args.team) {
                const int vector = first + lane;
                Vector x = {};
                if (vector < vectors) x = get(row, vector);
                int codes[8], sum_of_codes = 0;
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    codes[i] = finite ? __float2int_rn(fminf(fmaxf(x.v[i] * code.inverse, code.low), code.high)) : 0;
                    sum_of_codes += codes[i];
                }
                const auto bytes_of_four = [&](int at) {
                    return (codes[at] & 255u) | (codes[at + 1] & 255u) << 8 | (codes[at + 2] & 255u) << 16 |
                           static_cast<unsigned>(codes[at + 3]) << 24;
                };
                const int at = args.interleaved ? vector / 8 * 64 + vector % 4 * 16 + vector / 4 % 2 * 8 : 8 * vector;
                if (exists && vector < out_vectors)
                    *reinterpret_cast<uint2*>(out + at) = make_uint2(bytes_of_four(0), bytes_of_four(4));
                if (!args.sums) continue;
                if (args.group == 0) {
                    total += sum_of_codes;
                    continue;
                }
                for (int distance = lanes_of_group / 2; distance > 0; distance /= 2)
                    sum_of_codes += __shfl_xor_sync(0xffffffffu, sum_of_codes, distance);
                const int group = vector / lanes_of_group;
                if (exists && lane % lanes_of_group == 0 && group < args.groups)
                    args.sums[token * args.groups + group] = sum_of_codes;
            }
            if (args.sums && args.group == 0) {
                total = team.sum(total);
                if (thread == 0 && exists) args.sums[token] = total;
            }
        }
        __syncthreads();  // before the next row's values
    }
}

__global__ void __launch_bounds__(transform_threads) transform_rows_kernel(TransformArgs args) {
    transform_rows<false>(args, nullptr);
}

__global__ void __launch_bounds__(mix_threads)
    mix_rows_kernel(const __grid_constant__ TransformArgs args, const __grid_constant__ OrderSigns signs) {
    transform_rows<true>(args, &signs);
}

}  // namespace
}  // namespace fastffn::cuda
