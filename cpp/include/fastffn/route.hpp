// Routers: which experts each token uses, and with what weights.
//
// A route is two arrays: ids [..., k] int32, where -1 is an empty slot, and weights [..., k] f32. moe() takes both, from
// here or from anywhere else. Everything is computed in f32, whatever the dtype of the logits.
#pragma once

#include <cstdint>

#include "fastffn/context.hpp"
#include "fastffn/router_score.hpp"
#include "fastffn/status.hpp"
#include "fastffn/tensor.hpp"

namespace fastffn {

const char* router_score_name(RouterScore score) noexcept;
Status parse_router_score(const char* name, RouterScore* score);
const char* group_score_name(GroupScore score) noexcept;
Status parse_group_score(const char* name, GroupScore* score);

// f32, f16 or bf16; one dimension of `experts` elements, not negatively strided.
struct TopkOptions {
    std::int64_t k = 1;  // slots per token, 1 to experts
    RouterScore score = RouterScore::softmax;
    bool renormalize = false;                     // divide the chosen weights by their sum
    float scale = 1;                              // multiplies every weight, after renormalize
    const TensorView* bias = nullptr;             // added to the logits
    const TensorView* correction_bias = nullptr;  // added to the scores for choosing only; weights come from p alone
    std::int64_t groups = 1;                      // consecutive experts in equal groups …
    std::int64_t topk_groups = 0;                 // … of which this many stay; 0: all
    GroupScore group_score = GroupScore::max;
    double top_p = 1;                   // below 1: the shortest prefix of the k whose p sum to it, at least one
    const TensorView* gamma = nullptr;  // for relu: scale per expert
    float norm_eps = 1e-6f;             // for relu: RMSNorm's
};

// logits [..., experts] f32, f16 or bf16, last dimension contiguous, other strides free but not negative. ids [..., k]
// int32 and weights [..., k] f32, contiguous.
//
// Slots hold the chosen experts from the best down; ties go to the lower id. relu and top_p fill what they do not use with
// id -1 and weight 0. Groups that are not kept are masked with -infinity, so that negative scores cannot bring theirs
// back. A logit of -infinity masks its expert: chosen last, with weight 0. A row with a NaN or +infinity, and one that is
// all -infinity, gets ids 0 … k - 1 and weights 0. Weights whose scores are all 0 stay 0 under renormalize.
Status route_topk(Context& context, const TensorView& logits, const TopkOptions& options, const TensorView& ids,
                  const TensorView& weights);
Status route_topk_workspace(const TensorView& logits, const TopkOptions& options, int threads, std::int64_t* bytes);

// Each expert takes the `capacity` tokens with its best scores (Zhou et al. 2022, arXiv:2202.09368): logits as above, scores
// softmax over experts or sigmoid; ties go to the earlier token. A token's slots hold the experts that took it from the
// best weight down; beyond k the smallest weights are dropped. Not causal: a token's route depends on the others.
// Tokens with NaN or +infinity are taken by nobody, and infinity counts as in route_topk.
struct ExpertChoiceOptions {
    std::int64_t k = 1;
    std::int64_t capacity = 1;  // tokens per expert, 0 or more
    RouterScore score = RouterScore::softmax;
};
Status route_expert_choice(Context& context, const TensorView& logits, const ExpertChoiceOptions& options,
                           const TensorView& ids, const TensorView& weights);
Status route_expert_choice_workspace(const TensorView& logits, const ExpertChoiceOptions& options, int threads,
                                     std::int64_t* bytes);

// ids[..., :] = table[tokens[...], :], weights 1 (0 where the table has -1): hash layers (Roller et al. 2021, arXiv:2106.04426). tokens [...] and
// table [vocabulary, k] int32 or int64, contiguous.
Status route_hash(const TensorView& tokens, const TensorView& table, const TensorView& ids, const TensorView& weights);

// Drops what is over an expert's capacity, in place: all first slots are filled in token order, then all second ones, and
// so on; what does not fit becomes id -1, weight 0 (GShard, arXiv:2006.16668). counts: workspace of `experts` int64.
Status limit_capacity(Context& context, const TensorView& ids, const TensorView& weights, std::int64_t experts,
                      std::int64_t capacity);

// counts[e] = slots that hold expert e. ids of any shape, int32, contiguous; counts [experts] int64, contiguous.
Status expert_load(const TensorView& ids, const TensorView& counts);

}  // namespace fastffn
