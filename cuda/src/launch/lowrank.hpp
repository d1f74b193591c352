// Low-rank pairs, W ≈ V · U, as one more format of matrix.hpp: prepare() makes p = x · uᵀ and prepares it for v, multiply() is v's.
//
// p is never more than [tokens of the call, rank]. Its type is that of hidden activations in front of v: bf16 for bf16 factors,
// f16 for f16 ones with f16 x (the CPU keeps f32 there), else f32.
#pragma once

#include <cuda_runtime.h>

#include "abi.hpp"
#include "launch/matrix.hpp"

namespace fastffn::cuda {

// v of a pair as a matrix of its own.
DeviceMatrix lowrank_outer(const DeviceMatrix& pair);

// prepare() of a pair, or of a stack of them with groups: p then has a row per position, each of its group's u.
cudaError_t prepare_lowrank(const DeviceRows& x, const DeviceMatrix& pair, Pieces& pieces, cudaStream_t stream,
                            Input* input, const TokenGroups* groups);

const char* lowrank_refusal(const DeviceMatrix& pair);

// p = x · uᵀ for u of int8 with a scale per row and 256 columns; x likewise, per token and 256 columns.
struct BlockedInt8Args {
    const void* x;  // f32, f16 or bf16 [tokens, depth]
    DType dtype;
    std::int64_t x_stride;  // elements
    signed char* codes;     // [tokens], rows of row_bytes: made from x
    float* scales;          // [tokens, blocks]: likewise
    const signed char* u;   // [rank], rows of row_bytes
    const float* u_scales;  // [blocks, rank]
    std::int64_t row_bytes, blocks, depth, rank, tokens;
    std::int64_t matrix_bytes;  // of a stack of pairs
    float* p;                   // [tokens, p_stride]; with groups [positions, p_stride]
    std::int64_t p_stride;
};
cudaError_t launch_blocked_int8(const BlockedInt8Args& args, const TokenGroups* groups, cudaStream_t stream);

}  // namespace fastffn::cuda
