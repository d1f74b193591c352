// sparse24 for many tokens on Hopper: wgmma.sp, weights in registers, x out of shared memory that bulk copies fill. sm_90a only.
//
//   block       one per multiprocessor, goes on from tile to tile: 192 tokens × 192 weight rows; gated: 96 of gate and the same 96 of up
//   cluster     two blocks share 192 tokens, each with rows of its own: each copies half of the tokens for both
//   warpgroup   0 copies: one of its threads keeps all stages under way, over the ends of tiles too
//               1, 2, 3 multiply: 64 rows each with all 192 tokens, 128 sums a thread. Gated: a warp has eight rows of gate as rows g
//               of its tile and the same rows of up as rows g + 8, so that both sums of an output are in one thread
//   stage       two pieces: 128 bytes of 192 tokens as two boxes with the 128-byte swizzle, and of each tile of 16 rows the bytes of
//               both pieces, which lie together. full[stage] counts their bytes, empty[stage] the warps that have done with them, in
//               both blocks
//   output      each warp takes its 16 rows through 2 KiB of shared memory, 32 tokens at a time
//
// Weights lie in the order of mma.sp's registers, which is wgmma.sp's too: a lane reads 16 bytes and a word per piece while the
// piece before is multiplied.
//
// Why 192 by 192 (estimates, nothing here was timed yet): wgmma.sp takes 96 cycles for 64 rows and 192 tokens, in which it reads 12 KiB
// of x from shared memory, all that this gives in 96 cycles; so sparse weights come to 85% of their peak at most. More tokens would
// leave room for two warpgroups alone: ptxas takes no wgmma of more registers than 512 threads have. From L2 a piece takes 19 KiB
// of a block alone and 13 KiB of one of two, for 288 cycles of tensor cores; all multiprocessors together get about 30 bytes a cycle
// each. That is 44% of the sparse peak, and 65%.
#pragma once

#include "kernels/sm90_dense.cuh"
#include "kernels/sparse24.cuh"
#include "ptx/cluster.cuh"
#include "ptx/registers.cuh"
#include "ptx/wgmma_sp.cuh"

namespace fastffn::cuda {
namespace {

struct Sm90Sparse24 {
    static constexpr int consumers = 3, threads = 128 * (consumers + 1), consumer_warps = 4 * consumers;
    static constexpr int tokens = 192, rows = 64 * consumers, tiles = rows / 16, stages = 5;
    static constexpr int x_bytes = tokens * 128, output_bytes = 32 * 16 * 4;  // of a stage; of a warp
    static constexpr int box_tokens = tokens / 2;
    // Of clusters: 16 tiles of rows and 8 of tokens are about one wave, 3072 weight rows of 9/8 bytes a column, 1584 tokens of 2.
    static constexpr int band = 8;
};

template <class P>
struct Sm90Sparse24Bytes {
    using T = Sm90Sparse24;
    static constexpr int tile = 2 * P::bytes;  // both pieces of a stage
    static constexpr int stage = (T::x_bytes + T::tiles * tile + 1023) / 1024 * 1024;
    static constexpr int output_offset = T::stages * stage;
    static constexpr int barriers_offset = output_offset + T::consumer_warps * T::output_bytes;
    static constexpr int shared = barriers_offset + 2 * T::stages * 8;
    static_assert(shared <= 227 * 1024, "what a block may have");
};

template <int blocks>
struct Sm90Sparse24Cluster {
    static constexpr int cluster = blocks;
};

struct Sm90Sparse24Bf16 : Sparse24Bf16 {
    static __device__ __forceinline__ void start(float (&acc)[96], const unsigned (&a)[4], const unsigned& positions,
                                                 unsigned long long x) {
        ptx::wgmma_sp_m64n192k32_bf16(acc, a, positions, x);
    }
};
struct Sm90Sparse24F16 : Sparse24F16 {
    static __device__ __forceinline__ void start(float (&acc)[96], const unsigned (&a)[4], const unsigned& positions,
                                                 unsigned long long x) {
        ptx::wgmma_sp_m64n192k32_f16(acc, a, positions, x);
    }
};
struct Sm90Sparse24Int8 : Sparse24Int8 {
    static __device__ __forceinline__ void start(int (&acc)[96], const unsigned (&a)[4], const unsigned& positions,
                                                 unsigned long long x) {
        ptx::wgmma_sp_m64n192k64_s8(acc, a, positions, x);
    }
};

// Registers of one piece: the warp's tile as it lies; gated, half of a tile of gate as rows g, and of up as rows g + 8.
// `w_tiles`: the stage's; `warp`: of the consumers.
template <class P, bool is_gated>
__device__ __forceinline__ void sm90_load_piece(const unsigned char* w_tiles, int warp, int lane, unsigned (&a)[4],
                                                unsigned& positions) {
    using T = Sm90Sparse24;
    constexpr int tile_bytes = Sm90Sparse24Bytes<P>::tile;
    if constexpr (!is_gated) {
        const unsigned char* const piece = w_tiles + warp * tile_bytes;
        const uint4 w = reinterpret_cast<const uint4*>(piece)[lane];
        a[0] = w.x, a[1] = w.y, a[2] = w.z, a[3] = w.w;
        positions = reinterpret_cast<const unsigned*>(piece + P::positions_offset)[P::word(lane)];
    } else {
        const bool upper = warp % 2;  // rows 8 to 15 of the tiles
        const unsigned char* const gate = w_tiles + warp / 2 * tile_bytes;
        const unsigned char* const up = gate + T::tiles / 2 * tile_bytes;
        const uint4 g = reinterpret_cast<const uint4*>(gate)[lane], u = reinterpret_cast<const uint4*>(up)[lane];
        a[0] = upper ? g.y : g.x;
        a[1] = upper ? u.y : u.x;
        a[2] = upper ? g.w : g.z;
        a[3] = upper ? u.w : u.z;
        if constexpr (P::values == sparse24_int8) {
            // A word is of one row: even lanes have rows g, odd ones rows g + 8.
            const unsigned char* const of = lane % 2 ? up : gate;
            positions = reinterpret_cast<const unsigned*>(of + P::positions_offset)[(lane & ~1) | (upper ? 1 : 0)];
        } else {
            // A word has both rows: 16 bits each.
            const unsigned of_gate = reinterpret_cast<const unsigned*>(gate + P::positions_offset)[P::word(lane)];
            const unsigned of_up = reinterpret_cast<const unsigned*>(up + P::positions_offset)[P::word(lane)];
            positions = __byte_perm(of_gate, of_up, upper ? 0x7632 : 0x5410);
        }
    }
}

// Depth of one tile: 64 rows of this warpgroup times all tokens.
template <class P, int cluster, bool is_gated>
__device__ __forceinline__ void sm90_multiply_sparse(typename P::Sum (&acc)[96], const unsigned char* shared,
                                                     ptx::Mbarrier* full, ptx::Mbarrier* empty,
                                                     Sm90Ring<Sm90Sparse24::stages>& ring, int pieces, int warp,
                                                     int lane) {
    using T = Sm90Sparse24;
    unsigned a[2][4] = {}, positions[2] = {};
    for (int first = 0; first < pieces; first += 2) {
        ptx::mbarrier_wait(full + ring.stage, ring.parity);
        const unsigned char* const stage = shared + ring.stage * Sm90Sparse24Bytes<P>::stage;
        const unsigned long long x = ptx::matrix_descriptor(stage);
        sm90_load_piece<P, is_gated>(stage + T::x_bytes, warp, lane, a[0], positions[0]);
        if (first + 1 < pieces) {
            sm90_load_piece<P, is_gated>(stage + T::x_bytes + P::bytes, warp, lane, a[1], positions[1]);
        } else {  // zeros meet the zeros behind the depth
            a[1][0] = a[1][1] = a[1][2] = a[1][3] = 0;
            positions[1] = 0xEEEEEEEEu;
        }
        ptx::wgmma_fence();
        P::start(acc, a[0], positions[0], x);
        P::start(acc, a[1], positions[1], x + 4);
        ptx::wgmma_commit();
        // Not one group later: registers of a may be loaded only while none of this warpgroup's wgmma is under way (else ptxas
        // waits after each). The other two warpgroups have tensor cores busy meanwhile.
        ptx::wgmma_wait<0>();
        sm90_release<Sm90Sparse24Cluster<cluster>>(empty + ring.stage, lane);
        ring.next();
    }
    ptx::wgmma_wait_all(acc);
}

// The sums of one warp to y: row g of its tile in acc[4j + c], row g + 8 in acc[4j + 2 + c], of token 8j + 2t + c.
template <class P, bool is_gated>
__device__ __forceinline__ void sm90_output_sparse(const Sparse24Args& args, const Sparse24Tokens& tokens,
                                                   const TokenTile& tile, const typename P::Sum (&acc)[96],
                                                   float* shared, int lane, std::int64_t row0) {
    // Outputs of a warp; lanes share a token's, four each.
    constexpr int outputs = is_gated ? 8 : 16, lanes = outputs / 4;
    const int g = lane / 4, t = lane % 4;
    const int bytes_of_four = args.y_dtype == DType::f32 ? 16 : 8;
    const bool aligned = args.y_stride % 4 == 0 && reinterpret_cast<std::uintptr_t>(args.y) % bytes_of_four == 0;
#pragma unroll 1
    for (int part = 0; part < 6; part++) {
        // [token][row] with both numbers stirred: lanes of one store, rows g of tokens 2t, meet all banks.
#pragma unroll
        for (int p = 0; p < 6; p++)
            if (p == part) {
#pragma unroll
                for (int i = 0; i < 16; i++) {
                    const int token = i / 4 * 8 + 2 * t + i % 2, row = g + i % 4 / 2 * 8;
                    shared[(token ^ (token / 4 % 2)) * 16 + (row ^ (token / 2 % 2 * 8))] =
                        static_cast<float>(acc[16 * p + i]);
                }
            }
        __syncwarp();
#pragma unroll 1
        for (int i = lane; i < 32 * lanes; i += 32) {
            const int token = i / lanes, column = i % lanes * 4, position = part * 32 + token;
            const float* const of_token = shared + (token ^ (token / 4 % 2)) * 16;
            const int stirred = token / 2 % 2 * 8;
            const std::int64_t row = row0 + column, at = (tile.first + position) * args.y_stride + row;
            if (position >= tile.count || row >= args.out_features) continue;
            const std::int64_t x_row = tokens.x_row(tile, position);
            float y[4];
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float left = of_token[(column + c) ^ stirred];
                const float up = is_gated ? of_token[(column + c + 8) ^ stirred] : left;
                y[c] = row + c < args.out_features ? sparse24_finished<is_gated>(args, tile, x_row, row + c, up, left)
                                                   : 0.0f;
            }
            if (aligned && row + 4 <= args.out_features) {
                store_four(args.y, args.y_dtype, at, y);
            } else {
#pragma unroll
                for (int c = 0; c < 4; c++)
                    if (row + c < args.out_features) store_element(args.y, args.y_dtype, at + c, y[c]);
            }
        }
        __syncwarp();  // before the next part's sums
    }
}

template <class P, int cluster, bool is_gated>
__global__ void __launch_bounds__(Sm90Sparse24::threads, 1)
    sm90_sparse24_kernel(const __grid_constant__ ptx::TensorMap x_map, Sparse24Args args, Sparse24Tokens tokens,
                         int token_tiles, int row_tiles) {
    using T = Sm90Sparse24;
    unsigned char* const shared = ptx::dynamic_shared();
    auto* const full = reinterpret_cast<ptx::Mbarrier*>(shared + Sm90Sparse24Bytes<P>::barriers_offset);
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
    // The blocks of a cluster have the same tokens and tiles of rows side by side; one of those may lie behind the last.
    const int rank = cluster == 1 ? 0 : static_cast<int>(ptx::cluster_rank());
    const int row_places = (row_tiles + cluster - 1) / cluster, tiles = token_tiles * row_places;
    const int first_tile = static_cast<int>(blockIdx.x) / cluster,
              step_of_tiles = static_cast<int>(gridDim.x) / cluster;
    const int pieces = static_cast<int>(args.pieces);
    constexpr int outputs = is_gated ? T::rows / 2 : T::rows;
    // The same in all lanes, and known to be.
    const int warpgroup = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x) / 128, 0);
    Sm90Ring<T::stages> ring;

    // 128 threads with 32 registers and 384 with 160 are 512 with 128.
    if (warpgroup == 0) {
        ptx::registers_decrease<32>();
        if (threadIdx.x == 0) {
            ptx::prefetch_map(&x_map);
            for (int index = first_tile; index < tiles; index += step_of_tiles) {
                const Sm90Tile place = sm90_tile<T>(index, token_tiles, row_places);
                const std::int64_t rows = static_cast<std::int64_t>(place.rows) * cluster + rank;
                const TokenTile all = {};  // of one matrix
                for (int first = 0; first < pieces; first += 2) {
                    unsigned char* const stage = shared + ring.stage * Sm90Sparse24Bytes<P>::stage;
                    ptx::Mbarrier* const barrier = full + ring.stage;
                    const int bytes = min(pieces - first, 2) * P::bytes;
                    ptx::mbarrier_wait(empty + ring.stage, ring.parity ^ 1);
                    ptx::mbarrier_arrive_expect(barrier, static_cast<unsigned>(T::x_bytes + T::tiles * bytes));
                    const int token0 = place.tokens * T::tokens;
                    if constexpr (cluster == 1) {
#pragma unroll
                        for (int box = 0; box < T::tokens / T::box_tokens; box++)
                            ptx::bulk_copy_box(stage + box * T::box_tokens * 128, &x_map, first * 64,
                                               token0 + box * T::box_tokens, barrier);
                    } else {
                        ptx::bulk_copy_box_to((1 << cluster) - 1, stage + rank * T::box_tokens * 128, &x_map,
                                              first * 64, token0 + rank * T::box_tokens, barrier);
                    }
#pragma unroll 1
                    for (int i = 0; i < T::tiles; i++) {
                        const bool of_gate = is_gated && i < T::tiles / 2;
                        const std::int64_t row_tile = rows * (outputs / 16) + (is_gated ? i % (T::tiles / 2) : i);
                        ptx::bulk_copy(stage + T::x_bytes + i * Sm90Sparse24Bytes<P>::tile,
                                       sparse24_tile(of_gate ? args.w_gate : args.w, args, all, row_tile) +
                                           static_cast<std::int64_t>(first) * P::bytes,
                                       static_cast<unsigned>(bytes), barrier);
                    }
                    ring.next();
                }
            }
        }
        __syncwarp();
    } else {
        ptx::registers_increase<160>();
        const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32 - 4;
        auto* const sums =
            reinterpret_cast<float*>(shared + Sm90Sparse24Bytes<P>::output_offset + warp * T::output_bytes);
        for (int index = first_tile; index < tiles; index += step_of_tiles) {
            typename P::Sum acc[96] = {};
            sm90_multiply_sparse<P, cluster, is_gated>(acc, shared, full, empty, ring, pieces, warp, lane);
            const Sm90Tile place = sm90_tile<T>(index, token_tiles, row_places);
            const std::int64_t rows = static_cast<std::int64_t>(place.rows) * cluster + rank;
            TokenTile tile = {};
            tokens.tile(place.tokens, T::tokens, &tile);
            sm90_output_sparse<P, is_gated>(args, tokens, tile, acc, sums, lane,
                                            rows * outputs + warp * (is_gated ? 8 : 16));
        }
    }
    // Others arrive at this block's barriers until they have done with their last tile.
    if constexpr (cluster > 1) ptx::cluster_sync();
}

}  // namespace
}  // namespace fastffn::cuda
