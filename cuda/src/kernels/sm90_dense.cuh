// y = x · wᵀ for many tokens on Hopper: wgmma out of shared memory that bulk tensor copies fill. sm_90a only.
//
//   block       one per multiprocessor, goes on from tile to tile: 128 tokens × 256 (or 128) weight rows. Gated: the first half
//               of the rows is gate, the second the same rows of up, so that both sums of an output are in one thread
//   cluster     two blocks with the large tile share its weight rows: each copies half of them for both
//   warpgroup   0 copies: one of its threads keeps all stages under way, over the ends of tiles too
//               1, 2 multiply: 64 tokens each with all weight rows of the tile, 128 (64) sums a thread
//   stage       128 bytes of depth of 128 tokens and of the weight rows, as boxes with the 128-byte swizzle. full[stage] counts their
//               bytes, empty[stage] the warps that have done with them, in both blocks
//   output      each warp takes its 16 tokens through 4 KiB of shared memory, 64 columns at a time: sums come in fragments and
//               leave as rows; scales, bias, activation on the way
//
// Own kernel rather than CUTLASS: the loop is short, every line of it runs in the emulator of tests/cuda, where races between
// copies and products show, and the gated epilogue would be ours in either case.
//
// Estimates, nothing here was timed yet: a stage of the large tile is 1024 cycles of tensor cores; from L2 it takes 48 KiB of a
// block alone and 32 KiB of one of two, and all multiprocessors together get about 30 bytes a cycle each. So the small tile, and
// the large one without a cluster, would wait for L2. The output of a large tile is about 1000 cycles.
#pragma once

#include "kernels/elements.cuh"
#include "kernels/sm90_products.cuh"
#include "kernels/tokens.cuh"
#include "launch/dense.hpp"
#include "ptx/cluster.cuh"
#include "ptx/registers.cuh"

namespace fastffn::cuda {
namespace {

// `cluster`: blocks that share a tile of weight rows, each with tokens of its own; each copies its part of the rows for all.
template <int tile_rows, int blocks_of_cluster = 1>
struct Sm90Dense {
    static_assert(tile_rows == 128 || tile_rows == 256, "one wgmma");
    static constexpr int tokens = 128, rows = tile_rows, stage_depth = 128, stages = tile_rows == 256 ? 4 : 6;
    static constexpr int threads = 384, consumer_warps = 8, cluster = blocks_of_cluster;
    static constexpr int x_bytes = tokens * stage_depth, stage_bytes = x_bytes + rows * stage_depth;
    static constexpr int output_offset = stages * stage_bytes, output_bytes = 16 * 64 * 4;  // of a warp
    static constexpr int barriers_offset = output_offset + consumer_warps * output_bytes;
    static constexpr int shared_bytes = barriers_offset + 2 * stages * 8;
    static_assert(shared_bytes <= 227 * 1024, "what a block may have");
    // Gate and up come from different maps; the blocks of a cluster copy a box each.
    static constexpr int box_rows = 128;
    static_assert(cluster == 1 || rows == cluster * box_rows, "a box for each block");
    // 8 bands of the large tile and 16 tiles of tokens are about one wave: rows of w and tokens in equal numbers.
    static constexpr int band = tile_rows == 256 ? 8 : 16;
    static __host__ __device__ constexpr int outputs(bool is_gated) { return is_gated ? rows / 2 : rows; }
};

// Which tile of tokens, and of weight rows.
struct Sm90Tile {
    int tokens, rows;
};

// Blocks that run together share rows of w and tokens: they go through bands of this many tiles of rows.
template <class T>
__device__ __forceinline__ Sm90Tile sm90_tile(int index, int token_tiles, int row_tiles) {
    const int per_band = T::band * token_tiles, band = index / per_band;
    const int band_rows = min(T::band, row_tiles - band * T::band), in_band = index - band * per_band;
    return {in_band / band_rows, band * T::band + in_band % band_rows};
}

// A stage and the parity of the phase that its barriers are in.
template <int stages>
struct Sm90Ring {
    int stage = 0;
    unsigned parity = 0;
    __device__ __forceinline__ void next() {
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }
};

__device__ __forceinline__ void load_four(float (&to)[4], const void* data, DType dtype, std::int64_t first,
                                          std::int64_t count, std::int64_t offset = 0) {
#pragma unroll
    for (int c = 0; c < 4; c++)
        to[c] = data && first + c < count ? load_element(data, dtype, offset + first + c) : 0.0f;
}

// Four neighbours of a row of y; aligned: to their size.
__device__ __forceinline__ void store_four(void* data, DType dtype, std::int64_t at, const float (&y)[4]) {
    if (dtype == DType::f32) {
        *reinterpret_cast<float4*>(static_cast<float*>(data) + at) = make_float4(y[0], y[1], y[2], y[3]);
        return;
    }
    uint2 bits;
    if (dtype == DType::bf16) {
        const __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(y[0], y[1]), __floats2bfloat162_rn(y[2], y[3])};
        memcpy(&bits, pairs, 8);
    } else {
        const __half2 pairs[2] = {__floats2half2_rn(y[0], y[1]), __floats2half2_rn(y[2], y[3])};
        memcpy(&bits, pairs, 8);
    }
    *reinterpret_cast<uint2*>(static_cast<unsigned short*>(data) + at) = bits;
}

// The sums of one warp to y: the tile's 16 tokens from warp_token on, outputs from row0 on.
template <bool is_gated, class Tokens, class Sum, int sums>
__device__ __forceinline__ void sm90_output(const DenseArgs& args, const Tokens& tokens, const TokenTile& tile,
                                            const Sum (&acc)[sums], float* rows, int lane, int warp_token,
                                            std::int64_t row0) {
    constexpr int parts = sums / 32;  // of 64 columns; gated: 32 of gate, 32 of up
    constexpr int outputs = is_gated ? 32 : 64, lanes = outputs / 4, tokens_per_pass = 32 / lanes;
    const int g = lane / 4, t = lane % 4;
    const int elements_of_four = args.y_dtype == DType::f32 ? 16 : 8;
    const bool aligned = args.y_stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(args.y) % elements_of_four == 0;
#pragma unroll 1
    for (int part = 0; part < parts; part++) {
        // Pairs of columns, pair p of row r at p ^ (4 · (r % 4)): the half warp of a store then covers all banks once.
#pragma unroll
        for (int p = 0; p < parts; p++)
            if (p == part) {
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    const int tile = !is_gated ? 8 * p + j : j < 4 ? 4 * p + j : sums / 8 + 4 * p + j - 4;
#pragma unroll
                    for (int half = 0; half < 2; half++)
                        *reinterpret_cast<float2*>(rows + (g + 8 * half) * 64 + ((4 * j + t) ^ (4 * (g % 4))) * 2) =
                            make_float2(static_cast<float>(acc[4 * tile + 2 * half]),
                                        static_cast<float>(acc[4 * tile + 2 * half + 1]));
                }
            }
        __syncwarp();
        const std::int64_t first = row0 + part * outputs + lane % lanes * 4;
        float bias[4], gate_bias[4], w_scales[4], w_gate_scales[4];
        const std::int64_t first_bias = tile.matrix * args.out_features;
        load_four(bias, args.bias, args.bias_dtype, first, args.out_features, first_bias);
        load_four(w_scales, args.x_scales ? of_matrix(args.w_scales, tile, args.matrix_bytes) : nullptr, DType::f32,
                  first, args.out_features);
        if (is_gated) {
            load_four(gate_bias, args.gate_bias, args.gate_bias_dtype, first, args.out_features, first_bias);
            load_four(w_gate_scales, args.x_scales ? of_matrix(args.w_gate_scales, tile, args.matrix_bytes) : nullptr,
                      DType::f32, first, args.out_features);
        }
#pragma unroll 2
        for (int pass = 0; pass < 16 / tokens_per_pass; pass++) {
            const int row = pass * tokens_per_pass + lane / lanes;
            if (!tokens.has(tile, warp_token + row) || first >= args.out_features) continue;
            const auto four = [&](int column) {
                return *reinterpret_cast<const float4*>(rows + row * 64 + ((column / 4) ^ (2 * (row % 4))) * 4);
            };
            const float4 left = four(lane % lanes * 4);
            float up[4] = {left.x, left.y, left.z, left.w}, gate[4] = {left.x, left.y, left.z, left.w};
            if (is_gated) {
                const float4 right = four(32 + lane % lanes * 4);
                up[0] = right.x, up[1] = right.y, up[2] = right.z, up[3] = right.w;
            }
            const float scale = args.x_scales ? args.x_scales[tokens.x_row(tile, warp_token + row)] : 1.0f;
            float y[4];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                if (args.x_scales) {
                    up[c] *= scale * w_scales[c];
                    if (is_gated) gate[c] *= scale * w_gate_scales[c];
                }
                up[c] += bias[c];
                if (is_gated) gate[c] += gate_bias[c];
                y[c] = is_gated ? gated(args.activation, gate[c], up[c]) : activated(args.activation, up[c]);
            }
            const std::int64_t at = (tile.first + warp_token + row) * args.y_stride + first;
            if (aligned && first + 4 <= args.out_features) {
                store_four(args.y, args.y_dtype, at, y);
            } else {
#pragma unroll
                for (int c = 0; c < 4; c++)
                    if (first + c < args.out_features) store_element(args.y, args.y_dtype, at + c, y[c]);
            }
        }
        __syncwarp();  // before the next part's sums
    }
}

// Weight rows of a stage; of a stack, with the number of the matrix behind the others.
template <class T, bool is_gated, class... Matrix>
__device__ __forceinline__ void sm90_copy_weights(unsigned char* w_tile, const ptx::TensorMap& w_map,
                                                  const ptx::TensorMap& gate_map, ptx::Mbarrier* barrier, int k,
                                                  int row0, Matrix... matrix) {
    if (is_gated) {
        ptx::bulk_copy_box(w_tile, &gate_map, k, row0, matrix..., barrier);
        ptx::bulk_copy_box(w_tile + T::rows / 2 * T::stage_depth, &w_map, k, row0, matrix..., barrier);
    } else {
#pragma unroll
        for (int box = 0; box < T::rows / T::box_rows; box++)
            ptx::bulk_copy_box(w_tile + box * T::box_rows * T::stage_depth, &w_map, k, row0 + box * T::box_rows,
                               matrix..., barrier);
    }
}

// Says that this warp has done with a stage, to all blocks that write to it.
template <class T>
__device__ __forceinline__ void sm90_release(ptx::Mbarrier* empty, int lane) {
    if constexpr (T::cluster == 1) {
        if (lane == 0) ptx::mbarrier_arrive(empty);
    } else {
        if (lane < T::cluster) ptx::mbarrier_arrive_at(empty, static_cast<unsigned>(lane));
    }
}

// Depth of one tile: 64 tokens of this warpgroup (0 or 1) times all weight rows.
template <class P, class T, int sums>
__device__ __forceinline__ void sm90_multiply(typename P::Sum (&acc)[sums], const unsigned char* shared,
                                              ptx::Mbarrier* full, ptx::Mbarrier* empty, Sm90Ring<T::stages>& ring,
                                              int steps, int warpgroup, int lane) {
    int previous = 0;
    for (int step = 0; step < steps; step++) {
        ptx::mbarrier_wait(full + ring.stage, ring.parity);
        const unsigned char* const stage = shared + ring.stage * T::stage_bytes;
        const unsigned long long x = ptx::matrix_descriptor(stage + warpgroup * 64 * T::stage_depth),
                                 w = ptx::matrix_descriptor(stage + T::x_bytes);
        ptx::wgmma_fence();
#pragma unroll
        for (int k = 0; k < 4; k++) P::step(acc, x + 2 * k, w + 2 * k);
        ptx::wgmma_commit();
        // One group stays under way, so that the tensor cores never wait for this warp.
        ptx::wgmma_wait<1>();
        if (step > 0) sm90_release<T>(empty + previous, lane);
        previous = ring.stage;
        ring.next();
    }
    ptx::wgmma_wait_all(acc);
    sm90_release<T>(empty + previous, lane);
}

template <class P, int tile_rows, int cluster, bool is_gated>
__global__ void __launch_bounds__(Sm90Dense<tile_rows>::threads, 1)
    sm90_dense_kernel(const __grid_constant__ ptx::TensorMap x_map, const __grid_constant__ ptx::TensorMap w_map,
                      const __grid_constant__ ptx::TensorMap gate_map, DenseArgs args, AllTokens tokens,
                      int row_tiles) {
    using T = Sm90Dense<tile_rows, cluster>;
    unsigned char* const shared = ptx::dynamic_shared();
    auto* const full = reinterpret_cast<ptx::Mbarrier*>(shared + T::barriers_offset);
    ptx::Mbarrier* const empty = full + T::stages;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int stage = 0; stage < T::stages; stage++) {
            ptx::mbarrier_init(full + stage, 1);
            ptx::mbarrier_init(empty + stage, T::consumer_warps * cluster);
        }
        ptx::mbarrier_fence_init();
    }
    if constexpr (cluster == 1) __syncthreads();
    else ptx::cluster_sync();
    // The blocks of a cluster have the same weight rows and tiles of tokens side by side; one of those may lie behind the last.
    const int rank = cluster == 1 ? 0 : static_cast<int>(ptx::cluster_rank());
    const int token_tiles = (static_cast<int>(tokens.tiles(T::tokens)) + cluster - 1) / cluster;
    const int tiles = token_tiles * row_tiles;
    const int first_tile = static_cast<int>(blockIdx.x) / cluster,
              step_of_tiles = static_cast<int>(gridDim.x) / cluster;
    const int steps = static_cast<int>((args.row_bytes + T::stage_depth - 1) / T::stage_depth);
    // The same in all lanes, and known to be.
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
    Sm90Ring<T::stages> ring;

    // 128 threads with 24 registers and 256 with 240 are what 384 with 168 are.
    if (warpgroup == 0) {
        ptx::registers_decrease<24>();
        if (threadIdx.x == 0) {
            ptx::prefetch_map(&x_map);
            ptx::prefetch_map(&w_map);
            for (int index = first_tile; index < tiles; index += step_of_tiles) {
                const Sm90Tile tile = sm90_tile<T>(index, token_tiles, row_tiles);
                const int token0 = (tile.tokens * cluster + rank) * T::tokens, row0 = tile.rows * T::outputs(is_gated);
                for (int step = 0; step < steps; step++) {
                    unsigned char* const x_tile = shared + ring.stage * T::stage_bytes;
                    unsigned char* const w_tile = x_tile + T::x_bytes;
                    ptx::Mbarrier* const barrier = full + ring.stage;
                    ptx::mbarrier_wait(empty + ring.stage, ring.parity ^ 1);
                    ptx::mbarrier_arrive_expect(barrier, T::stage_bytes);
                    const int k = step * T::stage_depth;
                    ptx::bulk_copy_box(x_tile, &x_map, k, token0, barrier);
                    if constexpr (cluster == 1) {
                        sm90_copy_weights<T, is_gated>(w_tile, w_map, gate_map, barrier, k, row0);
                    } else {
                        // Gated: rank 0 has gate, rank 1 up.
                        ptx::bulk_copy_box_to((1 << cluster) - 1, w_tile + rank * T::box_rows * T::stage_depth,
                                              is_gated && rank == 0 ? &gate_map : &w_map, k,
                                              is_gated ? row0 : row0 + rank * T::box_rows, barrier);
                    }
                    ring.next();
                }
            }
        }
        __syncwarp();
    } else {
        ptx::registers_increase<240>();
        const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 - 4;
        auto* const rows = reinterpret_cast<float*>(shared + T::output_offset + warp * T::output_bytes);
        for (int index = first_tile; index < tiles; index += step_of_tiles) {
            typename P::Sum acc[tile_rows / 2] = {};
            sm90_multiply<P, T>(acc, shared, full, empty, ring, steps, warpgroup - 1, lane);
            const Sm90Tile tile = sm90_tile<T>(index, token_tiles, row_tiles);
            TokenTile token_tile = {};
            tokens.tile(tile.tokens * cluster + rank, T::tokens, &token_tile);
            sm90_output<is_gated>(args, tokens, token_tile, acc, rows, lane, warp * 16,
                                  tile.rows * T::outputs(is_gated));
        }
    }
    // Others arrive at this block's barriers until they have done with their last tile.
    if constexpr (cluster > 1) ptx::cluster_sync();
}

}  // namespace
}  // namespace fastffn::cuda
