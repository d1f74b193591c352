// Rows through an RMSNorm and a Hadamard transform on their way to a product: one kernel where a row fits shared memory, which
// reads x once and writes codes or floats once.
#pragma once

#include "launch/rows.hpp"

namespace fastffn::cuda {

// Bytes of scratch that transforming `tokens` rows of `depth` columns may take: rows that no device's shared memory is sure to hold go
// through memory, so many at a time.
std::int64_t transform_scratch_bytes(std::int64_t tokens, std::int64_t depth, const RowTransform& transform);

// What args.transform says, then what launch_copy_rows and launch_quantize_rows do. Rows of y that are not padded may have any
// length and alignment here. x and rows may be the same memory where type and stride are.
cudaError_t launch_transform_rows(DType to, const RowsArgs& args, cudaStream_t stream);
cudaError_t launch_transform_quantize(const QuantizeArgs& args, cudaStream_t stream);

}  // namespace fastffn::cuda
