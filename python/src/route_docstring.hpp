// The docstring of route_topk. The first line is the signature that inspect reads.
#pragma once

namespace fastffn::python {

constexpr const char* route_topk_docstring =
    R"(route_topk($module, /, logits, k, *, score='softmax', renormalize=False, scale=1.0, bias=None, correction_bias=None, groups=1, topk_groups=None, group_score='max', top_p=1.0, gamma=None, norm_eps=1e-06, capacity_factor=None, out=None, stream=None, workspace=None)
--

The k best experts of each token, and their weights.

    softmax       p = softmax(l) over all experts             OLMoE, Qwen1.5-MoE; renormalize=True: Mixtral, Qwen3-MoE
    topk_softmax  softmax over the k chosen logits            GPT-OSS
    sigmoid       p = σ(l)                                    DeepSeek-V3; with k=1 Llama 4 (moe's weights_on_input=True)
    relu          p = gamma ⊙ RMSNorm(relu(l)), all p != 0    BlockFFN (arXiv:2507.08771)

Args:
    logits: [..., experts], f32, f16 or bf16, computed with in f32; the last dimension contiguous, other strides free but
        not negative.
    k: slots per token, 1 to the number of experts; None for all of them.
    score: as above.
    renormalize: divide the chosen weights by their sum (for sigmoid: by it plus 1e-20, as DeepSeek-V3 does).
    scale: multiplies every weight, last (DeepSeek's routed_scaling_factor).
    bias: [experts], added to the logits.
    correction_bias: [experts], added to the scores for choosing only; weights come from p alone (DeepSeek-V3). For
        softmax and sigmoid.
    groups, topk_groups: the experts in this many equal groups of neighbours, of which only the topk_groups best stay
        (None: all). The others are masked with -infinity.
    group_score: a group's score: "max", its best expert (DeepSeek-V2), or "top2", the sum of its best two (DeepSeek-V3).
    top_p: below 1, for softmax: keep the shortest prefix of the k whose p sum to at least this; at least one.
    gamma, norm_eps: [experts] scale and epsilon of relu's RMSNorm.
    capacity_factor: experts take at most ⌈capacity_factor · tokens · k / experts⌉ tokens; see :func:`limit_capacity`.
    out: a tuple (ids, weights) to write to: [..., k] int32 and f32, contiguous. It is returned as it is, and the call
        allocates nothing. None makes new arrays.
    stream, workspace: with logits on a CUDA device (every other array lies there then): as :func:`fastffn.linear`, with
        :func:`fastffn.device_workspace` bytes. Sums run in another order there; ties, NaN and infinity are as here.

Returns:
    ids [..., k] int32 and weights [..., k] f32, of logits' kind. A token's slots go from the best expert down, ties to the
    lower id. relu, top_p and capacity_factor leave slots empty: id -1, weight 0.

    A logit of -infinity masks its expert: chosen last (with correction_bias: as one whose p is 0), weight 0. A row with a
    NaN or +infinity, and one that is all -infinity (but for relu), gets the ids 0 … k - 1 and weights 0: in range and
    distinct.

Raises:
    ValueError, TypeError, BufferError, RuntimeError, MemoryError: as :func:`fastffn.linear`.)";

}  // namespace fastffn::python
