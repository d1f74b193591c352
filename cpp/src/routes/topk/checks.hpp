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

// The whole of route_topk's arguments: logits and options; then where the results go.
Status check_topk(const TensorView& logits, const TopkOptions& options, RowsView* rows);
Status check_topk_results(const TensorView& logits, const TopkOptions& options, const TensorView& ids,
                          const TensorView& weights);

Status check_expert_choice(const TensorView& logits, const ExpertChoiceOptions& options, RowsView* rows);
Status check_expert_choice_results(const TensorView& logits, const ExpertChoiceOptions& options, const TensorView& ids,
                                   const TensorView& weights);

// Those of the other routes, but for the values of tokens, tables and ids.
Status check_hash(const TensorView& tokens, const TensorView& table, const TensorView& ids, const TensorView& weights);
Status check_capacity(const TensorView& ids, const TensorView& weights, std::int64_t experts, std::int64_t capacity);
Status check_load(const TensorView& ids, const TensorView& counts);

}  // namespace fastffn
