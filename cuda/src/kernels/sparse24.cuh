// What the sparse24 kernels share: one mma.sp step per type, tokens of one matrix or of groups, and the end of a sum.
#pragma once

#include "kernels/elements.cuh"
#include "kernels/tokens.cuh"
#include "launch/sparse24.hpp"
#include "layout/sparse24.hpp"
#include "ptx/mma_sp.cuh"

namespace fastffn::cuda {
namespace {

constexpr int sparse24_rows = static_cast<int>(sparse24_tile_rows);

// The sizes of a piece as constants of their own: device code cannot call a host's constexpr functions.
template <std::uint32_t values_>
struct Sparse24Piece {
    static constexpr std::uint32_t values = values_;
    static constexpr int bytes = sparse24_piece_bytes(values), positions_offset = sparse24_positions_offset(values);
    static constexpr int positions_bytes = bytes - positions_offset;
};

// One piece: acc[16 rows × 8 tokens] += kept weights · 64 bytes of x. `word` is which word of the positions a lane loads: lanes
// that mma.sp's selector leaves out load their neighbours', which costs no byte.
struct Sparse24Bf16 : Sparse24Piece<sparse24_bf16> {
    using Sum = float;
    static __device__ __forceinline__ int word(int lane) { return lane / 4 * 2 + lane % 2; }
    static __device__ __forceinline__ void step(Sum (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[4],
                                                unsigned positions) {
        ptx::mma_sp_m16n8k32_bf16<0>(acc, a, b, positions);
    }
};

struct Sparse24F16 : Sparse24Piece<sparse24_f16> {
    using Sum = float;
    static __device__ __forceinline__ int word(int lane) { return lane / 4 * 2 + lane % 2; }
    static __device__ __forceinline__ void step(Sum (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[4],
                                                unsigned positions) {
        ptx::mma_sp_m16n8k32_f16<0>(acc, a, b, positions);
    }
};

struct Sparse24Int8 : Sparse24Piece<sparse24_int8> {
    using Sum = int;
    static __device__ __forceinline__ int word(int lane) { return lane; }
    static __device__ __forceinline__ void step(Sum (&acc)[4], const unsigned (&a)[4], const unsigned (&b)[4],
                                                unsigned positions) {
        ptx::mma_sp_m16n8k64_s8<0>(acc, a, b, positions);
    }
};

// Both kinds in one kernel: the choice is made once per block, and a template would double what there is to compile.
struct Sparse24Tokens {
    bool is_grouped;
    std::int64_t count;
    TokenGroups groups;
    __device__ __forceinline__ bool tile(std::int64_t index, int tile_tokens, TokenTile* tile) const {
        return is_grouped ? GroupedTokens{groups}.tile(index, tile_tokens, tile)
                          : AllTokens{count}.tile(index, tile_tokens, tile);
    }
    __device__ __forceinline__ std::int64_t x_row(const TokenTile& tile, int i) const {
        return is_grouped ? GroupedTokens{groups}.x_row(tile, i) : AllTokens{count}.x_row(tile, i);
    }
};

// Tile `row_tile` of the matrix that the tokens meet; behind the last one, the last: its sums go nowhere.
__device__ __forceinline__ const unsigned char* sparse24_tile(const void* w, const Sparse24Args& args,
                                                              const TokenTile& tile, std::int64_t row_tile) {
    const std::int64_t last = (args.out_features - 1) / sparse24_rows;
    return static_cast<const unsigned char*>(w) + tile.matrix * args.matrix_bytes +
           min(row_tile, last) * args.tile_bytes;
}

// From the sums of one token and output feature to y: scales, biases, activation.
template <bool is_gated>
__device__ __forceinline__ float sparse24_finished(const Sparse24Args& args, const TokenTile& tile, std::int64_t x_row,
                                                   std::int64_t row, float up, float gate) {
    if (args.x_scales) {
        const float scale = args.x_scales[x_row];
        const std::int64_t stack = tile.matrix * (args.matrix_bytes / 4);
        up *= scale * args.w_scales[stack + row];
        if (is_gated) gate *= scale * args.w_gate_scales[stack + row];
    }
    const std::int64_t at = tile.matrix * args.out_features + row;
    if (args.bias) up += load_element(args.bias, args.bias_dtype, at);
    if (is_gated && args.gate_bias) gate += load_element(args.gate_bias, args.gate_bias_dtype, at);
    return is_gated ? gated(args.activation, gate, up) : activated(args.activation, up);
}

}  // namespace
}  // namespace fastffn::cuda
