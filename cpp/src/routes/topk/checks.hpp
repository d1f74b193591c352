// Checks that the routers share.
#pragma once

#include "core/overlap.hpp"
#include "fastffn/route.hpp"
#include "layers/rows.hpp"

namespace fastffn {

// At least one expert, and few enough for int32 ids.
Status check_experts(const char* operation, std::int64_t experts);

// A table of one number per expert.
Status check_table(const char* operation, const char* name, const TensorView& table, std::int64_t experts);

// Contiguous, of this dtype.
Status check_plain(const char* operation, const char* name, const TensorView& array, DType dtype);

// ids and weights: contiguous int32 and f32, of the first `leading` dimensions of `source` and k; apart from each other.
Status check_route(const char* operation, const TensorView& source, const char* source_name, int leading,
                   std::int64_t k, const TensorView& ids, const TensorView& weights);

// Neither ids nor weights share memory with an input.
Status check_apart(const char* operation, const TensorView& input, const char* input_name, const TensorView& ids,
                   const TensorView& weights);

}  // namespace fastffn
