// Which weights a 2:4 sparse matrix keeps. Format::sparse24 (packed.hpp) takes weights with zeros in place of the others.
#pragma once

#include <cstdint>

#include "fastffn/status.hpp"
#include "fastffn/tensor.hpp"

namespace fastffn {

// Writes 1 to `mask` where a score is kept and 0 elsewhere. scores: [rows, cols] or [count, rows, cols]; f32, f16, bf16 or
// f64, any strides. mask: u8, the same shape, contiguous. Magnitudes of the scores count, and NaN as infinity.
//
// Plain: the two largest of every four consecutive scores of a row; of equal ones the first. A last group of fewer than
// four keeps two as well.
//
// Transposable: of the 90 ways to keep two scores in every row and in every column of a 4×4 block, the one with the largest
// sum (Hubara et al. 2021, arXiv:2102.08124), by trying all of them; of equal sums (in f64) the first in the order of
// transposable_patterns. Blocks at the edges are filled up with zeros, which may take the place of scores.
Status mask24(const TensorView& scores, bool transposable, const TensorView& mask);

// The 90 patterns in ascending order: bit 4·row + column is set where a score is kept.
constexpr int transposable_pattern_count = 90;
const std::uint16_t* transposable_patterns() noexcept;

}  // namespace fastffn
