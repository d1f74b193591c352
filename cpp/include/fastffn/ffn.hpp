// linear and ffn: the dense layers, in any weight format.
//
//   linear:  y = x · wᵀ + b
//   ffn:     y = activation(x · w_upᵀ + b_up) · w_downᵀ + b_down
//   gated:   y = (activation(x · w_gateᵀ + b_gate) ⊙ (x · w_upᵀ + b_up)) · w_downᵀ + b_down      (Shazeer 2020, arXiv:2002.05202)
//
//   sub-norm: h = (…) becomes RMSNorm(h) = h / √(mean(h²) + eps) ⊙ γ before · w_downᵀ                         (BitNet, arXiv:2504.12285)
//
// Shapes: x [..., d_model]; w_up, w_gate [d_ff, d_model]; w_down [d_model_out, d_ff]; biases [out_features]; y [..., d_model_out].
// x, y: f32, f16 or bf16 (each its own), last dimension contiguous, other strides free but not negative. Biases: f32, f16, bf16.
// Accumulation is f32 (int32 for int8). bf16 weights round x and the hidden activations to bf16; int8 weights quantise
// them per token to [-127, 127] with scale absmax/127; f32 and f16 weights keep them in f32.
// A NaN or infinity in a token reaches that token's outputs as IEEE arithmetic says; with int8 the token's row becomes NaN.
// With bf16 weights, subnormal weights and activations may count as zero (the bf16 instructions do that), so that infinity
// times one is NaN there.
// Same bits for any number of threads. A token's bits may depend on how many tokens its call has, as few and many tokens are
// summed in another order. x and y must not overlap.
#pragma once

#include <cstdint>

#include "fastffn/activation.hpp"
#include "fastffn/context.hpp"
#include "fastffn/packed.hpp"
#include "fastffn/status.hpp"
#include "fastffn/tensor.hpp"

namespace fastffn {

const char* activation_name(Activation activation) noexcept;
Status parse_activation(const char* name, Activation* activation);

// Hidden columns [start, start + length): rows of w_up and w_gate, columns of w_down.
struct Segment {
    std::int64_t start, length;
};

// Gate first: where activation(x · w_gateᵀ + b_gate) is exactly zero, the row of w_up is neither read nor multiplied
// (BitNet a4.8, arXiv:2411.04965). It needs w_gate, activation relu or relu2, w_up of a format and option that keep a row's
// weights together ("ternary" or "int4" with order "rows"), and no segments. Outputs have the bits of the dense order; where a
// skipped product would overflow f32 to infinity (times zero: NaN) it counts as finite.
enum class GateFirst : std::uint8_t {
    automatic = 0,  // where it can; several tokens of which more than half of the gates live read all rows after all
    always = 1,     // an error where it cannot
    never = 2,
};

struct FfnWeights {
    PackedView w_up, w_down;
    PackedView w_gate;                 // data == nullptr: not gated
    const TensorView* b_up = nullptr;  // nullptr: no bias
    const TensorView* b_down = nullptr;
    const TensorView* b_gate = nullptr;
    Activation activation = Activation::gelu;
    // Uses these hidden columns alone, ascending and disjoint, and b_down whole: y is that of weights sliced to them. A prefix is
    // a MatFormer's sub-model (Devvrit et al. 2023, arXiv:2310.07707); layers packed side by side are parallel layers in one
    // call (FFN Fusion, Bercovich et al. 2025, arXiv:2503.18908). nullptr: all of d_ff.
    const Segment* segments = nullptr;
    std::int64_t segment_count = 0;
    // γ [d_ff], f32, f16 or bf16, contiguous: an RMSNorm of the hidden activations, in f32 whatever w_down's format is, so that
    // relu² may leave the range of f16. With segments it is that of the used columns. nullptr: none.
    const TensorView* sub_norm = nullptr;
    float sub_norm_eps = 1e-5f;  // 0 or more
    GateFirst gate_first = GateFirst::automatic;
};

Status linear(Context& context, const TensorView& x, const PackedView& w, const TensorView* bias, const TensorView& y);
Status ffn(Context& context, const TensorView& x, const FfnWeights& weights, const TensorView& y);

// Exact bytes of workspace that such a call takes from its context.
Status linear_workspace(const TensorView& x, const PackedView& w, int threads, std::int64_t* bytes);
Status ffn_workspace(const TensorView& x, const FfnWeights& weights, int threads, std::int64_t* bytes);

}  // namespace fastffn
