// The docstring of moe. The first line is the signature that inspect reads.
#pragma once

namespace fastffn::python {

constexpr const char* moe_docstring =
    R"(moe($module, /, x, ids, weights, w_up, w_down, w_gate=None, b_up=None, b_down=None, b_gate=None, *, activation, shared=None, special=None, weights_on_input=False, load=None, sub_norm=None, sub_norm_eps=1e-05, out=None, stream=None, workspace=None)
--

A mixture of experts, after any router, over experts in any weight format.

    y[t] = Σ_j weights[t, j] · expert_{ids[t, j]}(x[t])  +  Σ_s gate_s(x[t]) · shared_s(x[t])

    expert(x) = activation(x · w_upᵀ + b_up) · w_downᵀ + b_down
    expert(x) = (activation(x · w_gateᵀ + b_gate) ⊙ (x · w_upᵀ + b_up)) · w_downᵀ + b_down      with w_gate

Args:
    x: [..., d_model], f32, f16 or bf16; the last dimension contiguous, other strides free but not negative. NumPy,
        torch (CPU), or any array with ``__dlpack__`` or the buffer protocol; never copied.
    ids: [..., k] int32 or int64: the experts of each token, as :func:`fastffn.route_topk` gives them; -1 is an empty
        slot. An id twice counts twice. Other ids are refused before any work.
    weights: [..., k] f32, f16 or bf16; None: every pick counts 1. A weight of 0 does not skip its expert: NaN stays NaN.
    w_up, w_gate: packed stacks [E, d_ff, d_model]: ``fastffn.pack`` of such an array.
    w_down: packed stack [E, d_model_out, d_ff]. Or lists of packed stacks, for experts of several widths or formats: ids
        count through them.
    b_up, b_gate: [E, d_ff]; b_down: [E, d_model_out]; f32, f16 or bf16; None for none. Lists where the weights are lists.
    sub_norm: γ [E, d_ff]: an RMSNorm of each expert's hidden activations, as in :func:`fastffn.ffn`, with sub_norm_eps; None for
        none. A list where the weights are lists.
    activation: one of :func:`fastffn.activations`; "swiglu_clamped" is GPT-OSS's (clamp(up, ±7) + 1) · g · σ(1.702 g) with
        g = min(gate, 7).
    shared: a :class:`fastffn.SharedExperts`, or a list of them: experts that every token uses.
    special: names of experts without weights, for the ids E, E + 1, …: "zero" (adds nothing), "copy" (adds x) (MoE++,
        arXiv:2410.07348); or a :class:`fastffn.SpecialExperts`, which has "constant" ones too.
    weights_on_input: weights[t, j] · expert(x) becomes expert(weights[t, j] · x) (Llama 4). Shared experts see plain x.
    load: [E + special] int64, sharing no memory with the others: overwritten with how many slots named each expert.
    out: where to write y: [..., d_model_out], f32, f16 or bf16, writable, sharing no memory with the inputs. It is
        returned as it is, and the call allocates no array. None makes a new array.
    stream, workspace: with weights on a CUDA device (every array lies there then): as :func:`fastffn.linear`, with
        :func:`fastffn.device_workspace` bytes.

Returns:
    y, [..., d_model_out]: without ``out``, an array of x's kind and dtype.

Raises:
    ValueError, TypeError, BufferError, RuntimeError, MemoryError: as :func:`fastffn.linear`; ValueError also for ids out
        of range.

Experts are added in f32: special ones by slot, then the others in ascending order of their ids, then shared ones. The hidden activations and the picks' results
exist only as tiles. The result has the same bits for any number of threads, and rounding is that of :func:`fastffn.ffn`.

On CUDA devices ids are not read before the call: those that name no expert are empty slots. With bf16 results and more than
16 tokens, experts' outputs are rounded to bf16 before weights add them up in f32. Up to 4096 ids per token and 128 special
experts. Never run on a GPU so far: the kernels' logic is tested on the CPU.)";

}  // namespace fastffn::python
