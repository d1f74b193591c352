// Rows through RMSNorm and Hadamard transform to floats or codes, whole in shared memory: each byte of x is read once and each of the
// result written once.
//
//   team      the threads of one row: whole warps, 32 columns a thread; a block of several teams has several rows
//   vector    8 neighbouring columns, what a thread loads and stores; butterflies of 2, 4 and 8 happen in its registers
//   round     up to 32 columns a power of two apart in a thread's registers: five levels of butterflies for one pass over shared memory
//   H_K       on tensor cores, in integers: a warp rounds 16 columns of all K parts to 22 bits of the largest of each column, as
//             three digits of 8 bits, and ±1 times those adds up exactly. So a result is within K · 2^-23 of its column's largest
//
// Butterflies are those of the CPU in its order, so without H_K a row has its very bits.
//
// Estimate for 4096 bf16 columns on an H200: shared memory moves each value six times, 770 cycles of a multiprocessor; its share
// of HBM takes 790. H_172 keeps integer tensor cores busy for about as long as HBM moves its row.
#pragma once

#include "kernels/elements.cuh"
#include "kernels/row_code.cuh"
#include "launch/transform.hpp"
#include "ptx/dependent.cuh"
#include "ptx/mma.cuh"
#include "ptx/shared.cuh"

namespace fastffn::cuda {
namespace {

constexpr int transform_threads = 768, mix_threads = 384;  // at most; 80 and 168 registers
constexpr int most_order = 172, most_depth_tiles = 6;      // tiles of 32 parts

// Signs of H_K, a bit each, row after row: set where an entry is -1. Orders are multiples of four.
struct OrderSigns {
    unsigned words[(most_order * most_order + 31) / 32];
};

// Shared memory of mix_parts: the signs as mma's lanes take them, and the bits that they are made from.
__host__ __device__ constexpr int order_tiles(int order) { return (order + 15) / 16 * ((order + 31) / 32); }
__host__ __device__ constexpr int order_words(int order) { return (order * order + 31) / 32; }
__host__ __device__ constexpr int order_table_bytes(int order) {
    return order > 1 ? order_tiles(order) * 512 + (order_words(order) * 4 + 15) / 16 * 16 : 0;
}

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

// Four bytes of four integers: their digit at `byte`.
__device__ __forceinline__ unsigned four_bytes(const int (&q)[4], int byte) {
    const unsigned selector = static_cast<unsigned>(byte | (byte + 4) << 4);
    const unsigned low = __byte_perm(static_cast<unsigned>(q[0]), static_cast<unsigned>(q[1]), selector);
    const unsigned high = __byte_perm(static_cast<unsigned>(q[2]), static_cast<unsigned>(q[3]), selector);
    return __byte_perm(low, high, 0x5410);
}

// H_K across the parts, in place: load(part, column) and store(part, column, value) of `columns` columns, 16 of them by each of
// `warps` warps. signs: what make_signs() made.
template <class Load, class Store>
__device__ __forceinline__ void mix_parts(const uint4* signs, int order, std::int64_t columns, int warp, int warps,
                                          Load load, Store store) {
    const int lane = static_cast<int>(threadIdx.x) % 32, g = lane / 4, t = lane % 4;
    const int tiles = (order + 31) / 32, row_tiles = (order + 15) / 16;
    for (std::int64_t column0 = warp * 16; column0 < columns; column0 += warps * 16) {
        unsigned b[2][most_depth_tiles][3][2];
        float unit[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const std::int64_t column = column0 + 8 * n + g;
            // Lane 4g + t has parts 4t … 4t + 3 and 4t + 16 … 4t + 19 of each 32 of column g.
            const auto value = [&](int part) { return part < order && column < columns ? load(part, column) : 0.0f; };
            unsigned largest = 0;
            for (int tile = 0; tile < tiles; tile++)
#pragma unroll
                for (int i = 0; i < 8; i++)
                    largest =
                        max(largest, __float_as_uint(value(tile * 32 + i / 4 * 16 + 4 * t + i % 4)) & 0x7fffffffu);
            largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 1));
            largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, 2));
            // |x| < 2^(e + 1) becomes less than 2^22; a column with a NaN or an infinity becomes NaN.
            const int biased = max(static_cast<int>(largest >> 23), 22);
            const bool finite = largest < 0x7f800000u;
            const float scale = finite ? __int_as_float((275 - biased) << 23) : 0.0f;
            unit[n] = finite ? __int_as_float((biased - 21) << 23) : __int_as_float(0x7fffffff);
#pragma unroll
            for (int tile = 0; tile < most_depth_tiles; tile++) {
                if (tile >= tiles) continue;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    int q[4];
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        q[i] = __float2int_rn(__fmul_rn(value(tile * 32 + half * 16 + 4 * t + i), scale));
                    // Signed digits: what the lower byte of a number says as a signed one is taken off.
#pragma unroll
                    for (int digit = 0; digit < 3; digit++) {
                        b[n][tile][digit][half] = four_bytes(q, 0);
#pragma unroll
                        for (int i = 0; i < 4; i++) q[i] = (q[i] + 128) >> 8;
                    }
                }
            }
        }
        __syncwarp();  // all lanes have read the columns that are written now
#pragma unroll 1
        for (int row = 0; row < row_tiles; row++) {
            int acc[2][3][4] = {};
#pragma unroll
            for (int tile = 0; tile < most_depth_tiles; tile++) {
                if (tile >= tiles) continue;
                const uint4 four = signs[(row * tiles + tile) * 32 + lane];
                const unsigned a[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                for (int n = 0; n < 2; n++)
#pragma unroll
                    for (int digit = 0; digit < 3; digit++) ptx::mma_m16n8k32_s8(acc[n][digit], a, b[n][tile][digit]);
            }
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float of_column = __shfl_sync(0xffffffffu, unit[n], 8 * t + 4 * (i % 2));
                    const int part = row * 16 + g + i / 2 * 8;
                    const std::int64_t column = column0 + 8 * n + 2 * t + i % 2;
                    // At most 172 · 2^22.
                    const int total = acc[n][2][i] * 65536 + acc[n][1][i] * 256 + acc[n][0][i];
                    if (part < order && column < columns) store(part, column, static_cast<float>(total) * of_column);
                }
        }
    }
}

// The signs as ±1 in the lanes and registers of mma's matrix a: register r of a lane has rows g + 8 (r % 2) and columns
// 4t + 16 (r / 2) and three further. Returns the table; `bits` is memory behind it.
__device__ __forceinline__ const uint4* make_signs(void* shared, const OrderSigns& signs, int order) {
    auto* const table = static_cast<uint4*>(shared);
    auto* const bits = reinterpret_cast<unsigned*>(table + order_tiles(order) * 32);
    const int lane = static_cast<int>(threadIdx.x) % 32;
    // Whole warps read the same words of the launch's arguments.
    for (int i = static_cast<int>(threadIdx.x) / 32; i < order_words(order); i += static_cast<int>(blockDim.x) / 32) {
        const unsigned word = signs.words[i];
        if (lane == 0) bits[i] = word;
    }
    __syncthreads();
    const int tiles = (order + 31) / 32, groups = order / 4;
    for (int i = static_cast<int>(threadIdx.x); i < order_tiles(order) * 32; i += static_cast<int>(blockDim.x)) {
        const int tile = i / 32, g = i % 32 / 4, t = i % 4;
        unsigned a[4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
            const int row = tile / tiles * 16 + g + r % 2 * 8, four = (tile % tiles * 32 + r / 2 * 16) / 4 + t;
            const int at = row * groups + four;  // fours of bits
            const unsigned minus = row < order && four < groups ? bits[at / 8] >> at % 8 * 4 & 15u : 0u;
            // Bits to bytes of 0 and 1, and those to 1 and -1.
            a[r] = 0x01010101u ^ ((minus * 0x00204081u & 0x01010101u) * 0xfeu);
        }
        table[i] = make_uint4(a[0], a[1], a[2], a[3]);
    }
    __syncthreads();
    return table;
}

// What all threads of a team have, given what every thread has. Barriers are the block's: its teams do the same steps.
struct TeamReduction {
    int first_warp, warps;  // of the team
    __device__ __forceinline__ unsigned largest(unsigned value) const {
        __shared__ unsigned slots[32];
        value = __reduce_max_sync(0xffffffffu, value);
        if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
        __syncthreads();
        for (int w = 0; w < warps; w++) value = max(value, slots[first_warp + w]);
        return value;
    }
    __device__ __forceinline__ float sum(float value) const {
        __shared__ float slots[32];
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
        if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
        __syncthreads();
        value = 0;
        for (int w = 0; w < warps; w++) value += slots[first_warp + w];
        return value;
    }
    __device__ __forceinline__ int sum(int value) const {
        __shared__ int slots[32];
        value = __reduce_add_sync(0xffffffffu, value);
        if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
        __syncthreads();
        value = 0;
        for (int w = 0; w < warps; w++) value += slots[first_warp + w];
        return value;
    }
};

// 1/√(mean of squares + eps): squares are of x · 2^-e, e the exponent of the largest, so that none leaves the range of f32. The last
// steps are in f64, by one thread: some devices have few units for it.
__device__ __forceinline__ float inverse_norm(const TeamReduction& team, int team_thread, unsigned largest,
                                              float squares, int exponent, std::int64_t mean_of, float eps) {
    __shared__ float results[32];
    const float total = team.sum(squares);
    if (team_thread == 0) {
        const double mean = static_cast<double>(total) / static_cast<double>(mean_of);
        float result = static_cast<float>(1.0 / sqrt(scalbn(mean, 2 * exponent) + static_cast<double>(eps)));
        if (largest >= 0x7f800000u) result = largest == 0x7f800000u ? 0.0f : __int_as_float(0x7fffffff);
        results[team.first_warp] = result;
    }
    __syncthreads();
    return results[team.first_warp];
}

// The group of a position: how many groups end at or before it.
__device__ __forceinline__ std::int64_t group_of(const std::int32_t* offsets, std::int64_t groups,
                                                 std::int64_t position) {
    std::int64_t low = 0, high = groups;
    while (low < high) {
        const std::int64_t middle = (low + high) / 2;
        if (offsets[middle + 1] <= position) low = middle + 1;
        else high = middle;
    }
    return low;
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
