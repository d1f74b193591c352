// The weighted sum of the all-node form. A warp takes one token and some columns, its lanes 16 bytes of a row each; lane t holds the
// coefficient of level t. Tokens that come sorted by subtree share rows, which L1 then holds: nothing is staged.
#pragma once

#include "kernels/fff_rows.cuh"

namespace fastffn::cuda {
namespace {

// Stores `count` neighbouring columns (a multiple of 4), as wide as they go. `is_aligned`: y and its stride are whole 16 bytes.
template <int count>
__device__ __forceinline__ void store_columns(void* y, DType dtype, std::int64_t row, std::int64_t column,
                                              std::int64_t cols, bool is_aligned, const float (&values)[count]) {
    if (!is_aligned || column + count > cols) {
#pragma unroll
        for (int i = 0; i < count; i++)
            if (column + i < cols) store_element(y, dtype, row + column + i, values[i]);
        return;
    }
    if (dtype == DType::f32) {
        float4* const to = reinterpret_cast<float4*>(static_cast<float*>(y) + row + column);
#pragma unroll
        for (int i = 0; i < count / 4; i++)
            to[i] = make_float4(values[4 * i], values[4 * i + 1], values[4 * i + 2], values[4 * i + 3]);
        return;
    }
    unsigned words[count / 2];
#pragma unroll
    for (int i = 0; i < count / 2; i++) {
        const float low = values[2 * i], high = values[2 * i + 1];
        words[i] = dtype == DType::bf16
                       ? __bfloat16_as_ushort(__float2bfloat16_rn(low)) |
                             static_cast<unsigned>(__bfloat16_as_ushort(__float2bfloat16_rn(high))) << 16
                       : __half_as_ushort(__float2half_rn(low)) |
                             static_cast<unsigned>(__half_as_ushort(__float2half_rn(high))) << 16;
    }
    unsigned char* const to = static_cast<unsigned char*>(y) + (row + column) * 2;
    if constexpr (count == 4) {
        *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else {
#pragma unroll
        for (int i = 0; i < count / 8; i++)
            reinterpret_cast<uint4*>(to)[i] =
                make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
}

__device__ __forceinline__ bool is_aligned(const SumArgs& args) {
    const std::int64_t element = args.y_dtype == DType::f32 ? 4 : 2;
    return reinterpret_cast<std::uintptr_t>(args.y) % 16 == 0 && args.y_stride * element % 16 == 0;
}

// What a node's row counts: act(z), times the scale of an int8 row.
__device__ __forceinline__ float coefficient(const SumArgs& args, float z, std::int64_t place) {
    return activated(args.activation, z) * __ldg(args.tree.heads + place).w;
}

template <int format, int vectors>
struct Sums {
    static constexpr int each = row_columns<format>;
    float of[vectors][each] = {};

    // Adds weight · row for columns 16 bytes apart by `apart` from `at` on.
    __device__ __forceinline__ void add(const unsigned char* row, std::int64_t at, int apart, std::int64_t bytes,
                                        float weight) {
        uint4 bits[vectors];
#pragma unroll
        for (int v = 0; v < vectors; v++)
            if (at + v * apart < bytes) bits[v] = __ldg(reinterpret_cast<const uint4*>(row + at + v * apart));
#pragma unroll
        for (int v = 0; v < vectors; v++) {
            if (at + v * apart >= bytes) continue;
            float w[each];
            widen<format>(bits[v], w);
#pragma unroll
            for (int i = 0; i < each; i++) of[v][i] = fmaf(weight, w[i], of[v][i]);
        }
    }
    __device__ __forceinline__ void store(const SumArgs& args, std::int64_t token, std::int64_t at, int apart) const {
        const bool aligned = is_aligned(args);
#pragma unroll
        for (int v = 0; v < vectors; v++)
            if (at + v * apart < args.tree.out_bytes)
                store_columns(args.y, args.y_dtype, token * args.y_stride, (at + v * apart) / (16 / each),
                              args.tree.d_out, aligned, of[v]);
    }
};

constexpr int sum_warps = 8;

// vectors: 16 bytes that a lane has of each row. Grid: runs of tokens, columns in the second dimension. A block takes `run`
// neighbouring tokens per warp: those of one subtree then meet in one L1, and not in as many as there are multiprocessors.
template <int format, int vectors>
__global__ void __launch_bounds__(sum_warps * 32, vectors == 1 ? 3 : 2) sum_kernel(SumArgs args, int run) {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    const TreeArgs& tree = args.tree;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * sum_warps * run;
    for (int step = 0; step < run; step++) {
        const std::int64_t i = first + step * sum_warps + warp;
        if (i >= args.walkers.tokens) break;  // of the whole warp
        const std::int64_t token = args.order ? args.order[i] : i;
        for (std::int64_t span = blockIdx.y; span * vectors * 512 < tree.out_bytes; span += gridDim.y) {
            const std::int64_t at = span * vectors * 512 + lane * 16;
            Sums<format, vectors> sums;
            for (std::int64_t which = 0; which < tree.trees; which++) {
                const std::int64_t walker = which * args.walkers.tokens + token;
                const std::int32_t last = args.walkers.node[walker];
                const bool is_lost =
                    args.walkers.forced && forced_leaf(args.walkers, tree.trees, tree.depth, walker) < 0;
                float weight = 0.0f;
                if (lane < tree.levels)
                    weight = coefficient(args, args.walkers.z[walker * tree.levels + lane],
                                         node_place(tree, which, last >> (tree.depth - lane)));
                if (is_lost) weight = __int_as_float(0x7fffffff);
                // Loads of 2 to 4 KB a warp under way.
#pragma unroll(vectors == 1 ? 4 : 2)
                for (int level = 0; level < tree.levels; level++) {
                    const std::int64_t place = node_place(tree, which, last >> (tree.depth - level));
                    sums.add(tree.w_out + place * tree.out_bytes, at, 512, tree.out_bytes,
                             __shfl_sync(0xffffffffu, weight, level));
                }
            }
            sums.store(args, token, at, 512);
        }
    }
}

template <int format>
__device__ __forceinline__ void sum_columns_of_block(const SumArgs& args, std::int64_t token, std::int32_t last,
                                                     const float* weights, int thread, int threads) {
    const TreeArgs& tree = args.tree;
    for (std::int64_t at = thread * 16; at < tree.out_bytes; at += threads * 16) {
        Sums<format, 1> sums;
#pragma unroll 4
        for (int level = 0; level < tree.levels; level++)
            sums.add(tree.w_out + node_place(tree, 0, last >> (tree.depth - level)) * tree.out_bytes, at, 0,
                     tree.out_bytes, weights[level]);
        sums.store(args, token, at, 0);
    }
}

// A whole block for one token of one tree, in the same order of levels. z: of the path, in shared memory; thread t alone has read
// that of level t so far.
__device__ __forceinline__ void sum_of_block(const SumArgs& args, std::int64_t token, std::int32_t last, float* z,
                                             int thread, int threads) {
    const TreeArgs& tree = args.tree;
    if (thread < tree.levels) {
        const bool is_lost = args.walkers.forced && forced_leaf(args.walkers, tree.trees, tree.depth, token) < 0;
        z[thread] = is_lost ? __int_as_float(0x7fffffff)
                            : coefficient(args, z[thread], node_place(tree, 0, last >> (tree.depth - thread)));
    }
    __syncthreads();
    if (tree.format == row_f32) sum_columns_of_block<row_f32>(args, token, last, z, thread, threads);
    else if (tree.format == row_f16) sum_columns_of_block<row_f16>(args, token, last, z, thread, threads);
    else if (tree.format == row_bf16) sum_columns_of_block<row_bf16>(args, token, last, z, thread, threads);
    else sum_columns_of_block<row_int8>(args, token, last, z, thread, threads);
}

}  // namespace
}  // namespace fastffn::cuda
