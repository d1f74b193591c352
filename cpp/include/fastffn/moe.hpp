// moe: a mixture of experts, after any router, over experts in any weight format.
//
//   y[t] = Σ_{j < k, ids[t, j] >= 0} weights[t, j] · expert_{ids[t, j]}(x[t])  +  Σ_s gate_s(x[t]) · shared_s(x[t])
//
//   expert:       down · (activation(gate · x + b_gate) ⊙ (up · x + b_up)) + b_down        gated
//                 down · activation(up · x + b_up) + b_down                                plain
//   sub-norm:     RMSNorm of activation(…) ⊙ (…) with γ of the expert before down, where it has one
//   gate_s:       σ(v_s · x) where the shared expert has a gate (Qwen2-MoE), else 1
//   special:      zero: 0;  copy: x;  constant: a0 · x + a1 · v, a = softmax(W_c · x)      (MoE++, Jin et al. 2024, arXiv:2410.07348)
//
// Ids number the experts of all stacks in order, [0, E); special experts follow, [E, E + special). -1 is an empty slot, all
// else is refused before any work. An id twice in a row counts twice. A token without ids gets its shared experts, or 0.
// weights_on_input: weights[t, j] · expert(x) becomes expert(weights[t, j] · x), as in Llama 4; shared experts see plain x.
//
// Shapes: x [..., d_model]; ids and weights [..., k] with as many rows as x; per stack w_up, w_gate [E, d_ff, d_model],
// w_down [E, d_model_out, d_ff], b_up, b_gate [E, d_ff], b_down [E, d_model_out]; y [..., d_model_out].
// Stacks may differ in format and d_ff. ids: i32 or i64, weights and biases: f32, f16 or bf16, any strides that are not
// negative. x, y: as in ffn.hpp, and what is said there of rounding, NaN and bits for numbers of threads holds here.
// A weight of 0 is a weight: its expert runs, and NaN stays NaN; only special experts add nothing then, whatever x is.
// Experts are added in f32 in a fixed order: special experts by slot, then experts in ascending order of their id, then shared ones.
#pragma once

#include <cstdint>

#include "fastffn/activation.hpp"
#include "fastffn/context.hpp"
#include "fastffn/packed.hpp"
#include "fastffn/status.hpp"
#include "fastffn/tensor.hpp"

namespace fastffn {

// Experts of one shape and format: packed stacks of equal count. A stack of one matrix is one expert.
struct MoeExperts {
    PackedView w_up, w_down;
    PackedView w_gate;                 // data == nullptr: not gated
    const TensorView* b_up = nullptr;  // [E, d_ff]; nullptr: no bias
    const TensorView* b_down = nullptr;
    const TensorView* b_gate = nullptr;
    // γ [E, d_ff], f32, f16 or bf16, last dimension contiguous: an RMSNorm of the hidden activations, as in ffn.hpp. nullptr: none.
    const TensorView* sub_norm = nullptr;
    float sub_norm_eps = 1e-5f;
};

// Experts that every token uses, each with weight 1 or σ(v · x).
struct MoeShared {
    MoeExperts experts;
    const TensorView* gate = nullptr;  // v [count, d_model] f32, f16 or bf16; nullptr: weight 1
};

enum class SpecialExpert : std::uint8_t { zero = 0, copy = 1, constant = 2 };

// Experts without a product: they never reach the matrix kernels. copy and constant need d_model_out = d_model.
struct MoeSpecial {
    const SpecialExpert* kinds = nullptr;  // of ids E, E + 1, …
    std::int64_t count = 0;
    // The constant experts' v [constants, d_model] and W_c [constants, 2, d_model] (f32, f16 or bf16), in the order they have in kinds.
    const TensorView* vectors = nullptr;
    const TensorView* mix = nullptr;
};

struct MoeWeights {
    const MoeExperts* experts = nullptr;
    std::int64_t stacks = 0;  // at least 1
    Activation activation = Activation::silu;
    const MoeShared* shared = nullptr;
    std::int64_t shared_stacks = 0;
    MoeSpecial special;
    bool weights_on_input = false;
};

// weights == nullptr: every pick counts 1. load: nullptr, or [E + special] numbers, apart from all other arguments, that the
// call overwrites with how many slots named each expert.
Status moe(Context& context, const TensorView& x, const TensorView& ids, const TensorView* weights,
           const MoeWeights& layer, const TensorView& y, std::int64_t* load = nullptr);

// Exact bytes of workspace that a call with k = picks takes from its context.
Status moe_workspace(const TensorView& x, std::int64_t picks, const MoeWeights& layer, int threads,
                     std::int64_t* bytes);

// E + special of a layer: the length of `load`, and one more than the largest id.
Status moe_experts(const MoeWeights& layer, std::int64_t* experts);

}  // namespace fastffn
