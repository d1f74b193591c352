// The lowrank payload:  [fingerprint, 64 bytes][u, block by block][v]
//
// u [rank, in_features] is cut into blocks of 256 columns; each block is a [rank, columns] matrix packed in the factors' format.
// So a layer that makes x (or its hidden activations) 256 columns at a time multiplies each block as soon as it is there, and
// forgets it. v [out_features, rank] is one matrix in the factors' format. The fingerprint is a 128-bit hash of the packed u:
// a gate and an up projection with equal ones share x · uᵀ.
//
// Header: parameters[0] is the rank, parameters[1] the factors' Format.
#pragma once

#include <cstring>

#include "formats/format.hpp"

namespace fastffn {

// Columns per block. 256 hold whole AMX tiles of every format (16 steps of up to 4 depths), and at 2 bytes are one chunk of
// the AVX-512 loops (128 steps): larger blocks save nothing but the sum of two tiles, smaller ones are more sums.
constexpr std::int64_t lowrank_block = 256;
// Ranks up to here keep all sizes of forged headers far from overflow.
constexpr std::uint32_t lowrank_rank_limit = 1u << 24;
constexpr std::int64_t lowrank_fingerprint_bytes = 64;

// One packed pair, taken apart.
struct LowRankView {
    const FormatDefinition* factors;
    const std::byte* payload;
    std::int64_t out_features, in_features, rank;
    std::int64_t block_bytes;  // of a block of u; the last may be shorter

    std::int64_t blocks() const { return divide_up(in_features, lowrank_block); }
    std::int64_t block_columns(std::int64_t block) const {
        const std::int64_t rest = in_features - block * lowrank_block;
        return rest < lowrank_block ? rest : lowrank_block;
    }
    // Block `block` of u as a matrix of the factors' format.
    MatrixView inner(std::int64_t block) const {
        return {payload + lowrank_fingerprint_bytes + block * block_bytes, rank, block_columns(block), 0, {0, 0}};
    }
    MatrixView outer() const { return {payload + outer_offset(), out_features, rank, 0, {0, 0}}; }
    std::int64_t outer_offset() const;
    bool same_inner(const LowRankView& other) const {
        return factors == other.factors && rank == other.rank && in_features == other.in_features &&
               std::memcmp(payload, other.payload, 16) == 0;
    }
};

// The factors' format that a header or matrix names; nullptr: none that may be one.
const FormatDefinition* lowrank_factors(std::uint32_t format) noexcept;

// `matrix` is one of a packed weight of Format::lowrank whose header was checked.
LowRankView lowrank_view(const MatrixView& matrix) noexcept;

// Writes the fingerprint of a packed u, of which `view` is, to the first bytes of the payload.
void lowrank_fingerprint(const LowRankView& view, std::byte* payload);

// Kernels of the seam for factors of this format.
const FormatKernels* const* lowrank_kernels(Format factors) noexcept;

}  // namespace fastffn
