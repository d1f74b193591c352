// Low-rank weights: a matrix as the product of two thin ones, W ≈ V · U, packed as one weight.
//
//   u  [rank, in_features]    the inner factor, applied first:  p = x · uᵀ
//   v  [out_features, rank]   the outer factor:                 y = p · vᵀ + bias
//
// Both are what torch.nn.Linear holds of the two layers that replace one. A packed pair (Format::lowrank) goes wherever a packed
// weight goes; linear and ffn run it in one pass (FlashSVD, Shao et al. 2025, arXiv:2508.01506, single-pass form): the hidden
// activations [tokens, d_ff] exist only as a tile, x · uᵀ only for a tile of tokens. Where w_up and w_gate were packed with the
// same u, x · uᵀ is computed once for both.
//
// Sums are f32 throughout. The factors' format rounds what it multiplies as it does everywhere (bf16 to bf16, int8 to int8 per
// token): x and h as they meet u, p and s = h · u_downᵀ as they meet v. f16 factors keep all of these in f32, so s may pass 65504 (on
// CUDA devices with f16 x they are f16, see cuda.hpp).
#pragma once

#include <cstdint>

#include "fastffn/packed.hpp"
#include "fastffn/status.hpp"
#include "fastffn/tensor.hpp"

namespace fastffn {

// Bytes that pack_factors() writes for u [rank, in_features] and v [out_features, rank], or stacks of `count` of both.
Status packed_factors_bytes(const TensorView& u, const TensorView& v, Format factors, std::int64_t* bytes);

// Packs both factors in the format `factors`: f32, f16, bf16 or int8. u and v: f32, f16, bf16 or f64, any strides, each its own.
// int8 factors: v has a scale per row and p one per token; u has a scale per row and 256 columns, x (or the hidden
// activations) one per token and 256 columns.
Status pack_factors(const TensorView& u, const TensorView& v, Format factors, void* out, std::int64_t out_bytes);

struct LowRankInfo {
    std::int64_t rank;
    Format factors;
};

// Rank and format of the factors of a packed pair; an error for weights of any other format.
Status inspect_factors(const PackedView& packed, LowRankInfo* info, const char* name = "packed");

}  // namespace fastffn
