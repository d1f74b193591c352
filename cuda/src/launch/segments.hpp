// Segments of hidden columns in an ffn: what lies between them is zero, so that the down projection may read more than it needs.
#pragma once

#include <cuda_runtime.h>

#include "abi.hpp"
#include "launch/matrix.hpp"

namespace fastffn::cuda {

// Columns first … first + cols - 1 of rows.
DeviceRows columns_of(const DeviceRows& rows, std::int64_t first, std::int64_t cols);

// Zeros in the hidden columns that no segment holds.
cudaError_t zero_between(const FfnCall& call, const DeviceRows& hidden, const Pieces& pieces, cudaStream_t stream);

// From the first used column to the last, as far as w_down's format has slices: all that its product reads. Gaps between segments are read.
Slice used_columns(const FfnCall& call);

// The norm of the used columns. γ may be anything elsewhere: a copy of it with zeros there.
cudaError_t hidden_norm(const FfnCall& call, Pieces& pieces, cudaStream_t stream, RowNorm* norm);

}  // namespace fastffn::cuda
