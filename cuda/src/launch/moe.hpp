// moe on a device.
//
//   tables of groups | x to the products' form | hidden = act(gate) ⊙ up of every position | down | combine
//
// Ids are sorted by one block up to 2048 slots (a step of decoding: products would have to look through all ids in each of
// their blocks otherwise, which takes as long as that one launch), by four launches above. Rows of x are gathered as the first
// product loads them; the second writes a row per position, which combine adds up in the order of ids: nothing is atomic. Those
// rows are f32, but with bf16 y and more than 16 tokens bf16: at T = 4096, k = 8 and 2048 features f32 rows are 268 MB each way,
// 15 % of the time at half of an H100's peak (an estimate), bf16 ones half of that.
#pragma once

#include <cuda_runtime.h>

#include "abi/moe.hpp"

namespace fastffn::cuda {

const char* refusal(const MoeCall& call);
std::int64_t workspace_bytes(const MoeCall& call);
cudaError_t run(const MoeCall& call, void* workspace, cudaStream_t stream);

// The same in chunks of so many tokens, at least 1.
std::int64_t workspace_bytes(const MoeCall& call, std::int64_t chunk);
cudaError_t run(const MoeCall& call, std::int64_t chunk, void* workspace, cudaStream_t stream);

}  // namespace fastffn::cuda
