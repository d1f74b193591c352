// RouterScore and GroupScore: how logits become what experts are chosen by.
#pragma once

#include <cstdint>

namespace fastffn {

// How logits l [experts] become scores.
enum class RouterScore : std::uint8_t {
    softmax = 0,       // p = softmax(l) over all experts (OLMoE, Qwen, Mixtral, DeepSeek-V2)
    topk_softmax = 1,  // softmax over the k chosen logits (GPT-OSS)
    sigmoid = 2,       // p = sigmoid(l) (DeepSeek-V3; Llama 4 with k = 1)
    relu = 3,  // p = gamma ⊙ RMSNorm(relu(l)); a token keeps its experts with p != 0 (BlockFFN, arXiv:2507.08771)
};
constexpr int router_score_count = 4;

// How the experts of a group give the group's score.
enum class GroupScore : std::uint8_t {
    max = 0,   // the best one (DeepSeek-V2, arXiv:2405.04434)
    top2 = 1,  // the sum of the best two (DeepSeek-V3, arXiv:2412.19437)
};
constexpr int group_score_count = 2;

}  // namespace fastffn
