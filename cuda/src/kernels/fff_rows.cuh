// Rows of a tree, 16 bytes at a time, as f32; and a walker's steps.
#pragma once

#include "kernels/elements.cuh"
#include "launch/fff_kernels.hpp"

namespace fastffn::cuda {
namespace {

constexpr int row_f32 = 1, row_f16 = 2, row_bf16 = 3, row_int8 = 4;  // fastffn::Format

// Weights in 16 bytes.
template <int format>
constexpr int row_columns = format == row_f32    ? 4
                            : format == row_int8 ? 16
                                                 : 8;

template <int format>
__device__ __forceinline__ void widen_word(unsigned word, float* values) {
    if constexpr (format == row_f32) values[0] = __uint_as_float(word);
    if constexpr (format == row_bf16) {
        values[0] = __uint_as_float(word << 16);
        values[1] = __uint_as_float(word & 0xffff0000u);
    }
    if constexpr (format == row_f16) {
        values[0] = __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
        values[1] = __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
    }
    if constexpr (format == row_int8) {
        // A byte plus 128 in the low bits of 2^23 is that number exactly.
        const unsigned positive = word ^ 0x80808080u;
#pragma unroll
        for (int i = 0; i < 4; i++)
            values[i] = __uint_as_float(__byte_perm(positive, 0x4b000000u, 0x7440u + i)) - 8388736.0f;
    }
}

// The 4, 8 or 16 weights of 16 bytes.
template <int format>
__device__ __forceinline__ void widen(uint4 bits, float (&values)[row_columns<format>]) {
    constexpr int each = row_columns<format> / 4;
    widen_word<format>(bits.x, values);
    widen_word<format>(bits.y, values + each);
    widen_word<format>(bits.z, values + 2 * each);
    widen_word<format>(bits.w, values + 3 * each);
}

// A step of a warp is 512 bytes of a row; lane l has 16 of them. x lies in shared memory in the order in which lanes read it, four
// columns at a time, so that neighbouring lanes read neighbouring 16 bytes.
template <int format>
constexpr int step_columns = 32 * row_columns<format>;

template <int format>
__device__ __forceinline__ int x_place(int column) {
    constexpr int each = row_columns<format>;
    const int lane = column % step_columns<format> / each, quad = column % each / 4;
    return column / step_columns<format> * step_columns<format> + (quad * 32 + lane) * 4 + column % 4;
}

// Columns first … first + count - 1 of a row of x, zeros behind its end. `thread` of `threads` takes part.
template <int format>
__device__ __forceinline__ void stage_x(const WalkArgs& args, std::int64_t token, std::int64_t first, int count,
                                        float* x, int thread, int threads) {
    for (int k = thread; k < count; k += threads) {
        const std::int64_t column = first + k;
        x[x_place<format>(k)] =
            column < args.tree.d_model ? load_element(args.x, args.x_dtype, token * args.x_stride + column) : 0.0f;
    }
}

// A lane's part of x · row over `bytes` of the row. Four sums, one per column of a quad: the order is the same in every kernel that
// walks, so they give the same bits.
struct LaneSums {
    float of[4] = {};
    __device__ __forceinline__ float total() const { return (of[0] + of[1]) + (of[2] + of[3]); }
};

template <int format>
__device__ __forceinline__ void add_dot(const unsigned char* row, std::int64_t bytes, const float* x, int lane,
                                        LaneSums& sums) {
    constexpr int each = row_columns<format>, unroll = 4;
    for (std::int64_t at = lane * 16; at < bytes; at += unroll * 512, x += unroll * step_columns<format>) {
        uint4 bits[unroll];
#pragma unroll
        for (int u = 0; u < unroll; u++)
            if (at + u * 512 < bytes) bits[u] = __ldg(reinterpret_cast<const uint4*>(row + at + u * 512));
#pragma unroll
        for (int u = 0; u < unroll; u++) {
            if (at + u * 512 >= bytes) continue;
            float w[each];
            widen<format>(bits[u], w);
#pragma unroll
            for (int quad = 0; quad < each / 4; quad++) {
                const float4 v =
                    *reinterpret_cast<const float4*>(x + u * step_columns<format> + (quad * 32 + lane) * 4);
                sums.of[0] = fmaf(w[4 * quad], v.x, sums.of[0]);
                sums.of[1] = fmaf(w[4 * quad + 1], v.y, sums.of[1]);
                sums.of[2] = fmaf(w[4 * quad + 2], v.z, sums.of[2]);
                sums.of[3] = fmaf(w[4 * quad + 3], v.w, sums.of[3]);
            }
        }
    }
}

// Over the lanes of a warp; every lane has the result.
__device__ __forceinline__ float warp_sum(float sum) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    return sum;
}

// The leaf that is forced on a walker, or -1 where it is out of range.
__device__ __forceinline__ std::int64_t forced_leaf(const Walkers& walkers, std::int64_t trees, int depth,
                                                    std::int64_t walker) {
    const std::int64_t at = walker % walkers.tokens * trees + walker / walkers.tokens;
    const std::int64_t leaf = walkers.forced_is_wide ? static_cast<const std::int64_t*>(walkers.forced)[at]
                                                     : static_cast<const std::int32_t*>(walkers.forced)[at];
    return leaf >= 0 && leaf < std::int64_t{1} << depth ? leaf : -1;
}

// Node (from 1) to the place of its head and rows.
__device__ __forceinline__ std::int64_t node_place(const TreeArgs& tree, std::int64_t which, std::int32_t node) {
    return which * tree.nodes + node - 1;
}

// Where z sends a walker that stands on a node of `level`; forced: the leaf, or -1 (then to the left) where one is given.
__device__ __forceinline__ bool goes_right(const TreeArgs& tree, bool is_forced, std::int64_t forced, int level,
                                           float z, float threshold) {
    if (is_forced) return forced > 0 && (forced >> (tree.depth - 1 - level) & 1) != 0;
    return tree.ties_right ? z >= threshold : z > threshold;
}

// After a walk, by one thread per walker.
__device__ __forceinline__ void count_walker(const Counted& counted, std::int64_t which, std::int32_t node, int level,
                                             std::int64_t walker) {
    if (!counted.counts) return;
    const std::int64_t group = (which << level) + node - (std::int64_t{1} << level);
    counted.ranks[walker] = atomicAdd(counted.counts + group, 1);
}

// The same by the lanes of `active`, all of whom come here: one atomic for all on one node, or many tokens of a popular node would
// wait for each other.
__device__ __forceinline__ void count_walkers(const Counted& counted, std::int64_t which, std::int32_t node, int level,
                                              std::int64_t walker, unsigned active) {
    if (!counted.counts) return;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const std::int64_t group = (which << level) + node - (std::int64_t{1} << level);
    const unsigned peers = __match_any_sync(active, static_cast<unsigned>(group));
    const int leader = __ffs(static_cast<int>(peers)) - 1;
    int first = 0;
    if (lane == leader) first = atomicAdd(counted.counts + group, __popc(peers));
    first = __shfl_sync(active, first, leader);
    counted.ranks[walker] = first + __popc(peers & ((1u << lane) - 1));
}

}  // namespace
}  // namespace fastffn::cuda
