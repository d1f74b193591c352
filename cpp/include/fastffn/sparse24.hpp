// 2:4 sparsity of plain weights: masks, and the question whether weights already have it. pack(…, Format::sparse24) takes
// weights of which at most two of every four consecutive ones in a row are nonzero.
#pragma once

#include <cstdint>

#include "fastffn/status.hpp"
#include "fastffn/tensor.hpp"

namespace fastffn {

enum class Mask24 : std::uint8_t {
    // In every row, of every four consecutive scores (the last group may be shorter) the two of largest magnitude; ties keep
    // the lower index.
    largest,
    // In every 4×4 block two of each row and of each column, so that the transposed weights are 2:4 as well: the one of the
    // 90 such patterns with the largest sum of magnitudes, found by trying all (Hubara et al. 2021, arXiv:2102.08124, search
    // greedily or by min-cost flow). Ties keep the lower pattern; blocks that reach over an edge count as padded with zeros.
    transposable,
};

// mask[…] = 1 where a weight is kept, else 0. scores: [rows, cols] or [count, rows, cols], f32, f16, bf16 or f64, any
// strides; what counts is their magnitude in f32, where all above 4e37, infinity and NaN are equal. mask: u8 of the same shape,
// contiguous, sharing no memory with scores. 4096×11008 f32 scores take 0.1 s, transposable 0.7 s, on two busy Zen 4 cores.
Status mask24(const TensorView& scores, Mask24 kind, const TensorView& mask);

// The 90 transposable patterns in the order of ties: bit 4 · row + column is set where a weight is kept, ascending numbers.
constexpr int pattern24_count = 90;
const std::uint16_t* patterns24() noexcept;

// How many groups of four consecutive weights in a row hold how many nonzero ones. ±0 is zero, NaN is not.
struct Check24 {
    std::int64_t groups_with[5] = {};  // 0 to 4 nonzero weights
    // The first group, in the order of memory, with more than two; -1: none has.
    std::int64_t matrix = -1, row = -1, group = -1;

    bool ok() const noexcept { return row < 0; }
};

// w: [rows, cols] or [count, rows, cols], f32, f16, bf16 or f64, any strides.
Status check24(const TensorView& w, Check24* result);

}  // namespace fastffn
