// Docstrings of the functions that are not bound by pybind11. The first line is the signature that inspect reads.
#pragma once

namespace fastffn::python {

constexpr const char* linear_docstring =
    R"(linear($module, /, x, w, bias=None, *, out=None, stream=None, workspace=None)
--

y = x · wᵀ + bias, with packed weights.

Args:
    x: [..., in_features], f32, f16 or bf16; the last dimension contiguous, other strides free but not negative.
        NumPy, torch (CPU), or any array with ``__dlpack__`` or the buffer protocol; never copied.
    w: packed weights of one matrix [out_features, in_features]; see :func:`fastffn.pack`.
    bias: [out_features], f32, f16 or bf16; None for none.
    out: where to write y: [..., out_features], f32, f16 or bf16, writable, sharing no memory with the inputs. It is
        returned as it is, and the call allocates nothing. None makes a new array.
    stream: with weights on a CUDA device (:class:`fastffn.DeviceWeight`; every other array then lies there too): the stream to
        run on, an int (0 or 1: the legacy default, 2: per thread, else a handle) or an object with ``__cuda_stream__``. None is
        the stream that x's framework works on. The call does not wait for the device (but for results of jax, which knows
        no streams); a stream of your own waits for what makes the arrays if you have it wait (torch: ``wait_stream``), and keep
        them alive until it is done.
    workspace: there, device memory for the call alone until it is done: a contiguous uint8 array of at least
        :func:`fastffn.linear_workspace` bytes, aligned to 256. None takes it from the device's stream-ordered pool.

Returns:
    y, [..., out_features]: without ``out``, an array of x's kind and dtype.

Raises:
    ValueError: a shape, dtype, layout or value that does not fit; packed weights that are damaged or truncated.
    TypeError: an argument that is no array.
    BufferError: an array that cannot be read where it is.
    RuntimeError: an array on a GPU; a torch tensor that requires grad while grad mode is on; a FASTFFN_ISA that this
        CPU lacks.
    MemoryError: no memory for the workspace.

Sums are f32 (int32 for int8). f32 and f16 weights use x in f32, bf16 weights round x to bf16, int8 weights quantise
each token of x to [-127, 127] with scale absmax / 127. The result has the same bits for any number of threads.)";

constexpr const char* ffn_docstring =
    R"(ffn($module, /, x, w_up, w_down, w_gate=None, b_up=None, b_down=None, b_gate=None, *, activation, segments=None, sub_norm=None, sub_norm_eps=1e-05, gate_first="auto", out=None, stream=None, workspace=None)
--

The feed-forward layer of a transformer, with packed weights, in one pass.

    y = activation(x · w_upᵀ + b_up) · w_downᵀ + b_down
    y = (activation(x · w_gateᵀ + b_gate) ⊙ (x · w_upᵀ + b_up)) · w_downᵀ + b_down     with w_gate

    with sub_norm: the hidden activations h become h / √(mean(h²) + sub_norm_eps) ⊙ sub_norm before · w_downᵀ

The gated form is GLU (Shazeer 2020, arXiv:2002.05202): SwiGLU with silu, GEGLU with gelu, ReGLU with relu.

Args:
    x: [..., d_model], f32, f16 or bf16; the last dimension contiguous, other strides free but not negative. NumPy,
        torch (CPU), or any array with ``__dlpack__`` or the buffer protocol; never copied.
    w_up, w_gate: packed weights [d_ff, d_model]; see :func:`fastffn.pack`. Formats may differ.
    w_down: packed weights [d_model_out, d_ff].
    b_up, b_gate: [d_ff]; b_down: [d_model_out]; f32, f16 or bf16; None for none.
    activation: one of :func:`fastffn.activations`: "identity", "relu", "relu2", "gelu" (the exact one, with erf),
        "gelu_tanh", "silu"; "swiglu_clamped", with w_gate only, is GPT-OSS's (clamp(up, ±7) + 1) · g · σ(1.702 g) with
        g = min(gate, 7). There is no default, because models differ.
    segments: pairs (start, length) of hidden columns, ascending and disjoint: y is that of weights sliced to them (rows of
        w_up, w_gate and their biases, columns of w_down; b_down whole), without a copy. A prefix is a MatFormer's
        sub-model (arXiv:2310.07707); parallel layers lie side by side in one weight (FFN Fusion, arXiv:2503.18908).
        Columns outside cost nothing in w_up and w_gate, nor (but for the rest of a block of 64) in w_down where that is
        f32, f16, bf16 or low-rank (blocks of 256); other formats of w_down are read whole. Weights of those blocks must
        be finite. None for all of d_ff.
    sub_norm: γ [d_ff], f32, f16 or bf16, contiguous: an RMSNorm (arXiv:1910.07467) of each token's hidden activations, as BitNet
        has it (arXiv:2504.12285). They stay in f32 until it is done, so relu2 may leave the range of f16. With segments the
        mean is that of the used columns. None for none.
    sub_norm_eps: what is added to the mean of squares, 0 or more.
    gate_first: True multiplies w_gate first and reads only those rows of w_up whose activated gate is not zero (BitNet
        a4.8, arXiv:2411.04965); y has the same bits. It needs w_gate, activation "relu" or "relu2", w_up packed as
        "ternary" or "int4" with order="rows", and no segments. "auto" does so where it can; False never does.
        (Where more than half of the gates of several tokens live, all rows are read after all.) With w_down packed with order="columns", its columns are skipped too, in either order.
    out: where to write y: [..., d_model_out], f32, f16 or bf16, writable, sharing no memory with the inputs. It is
        returned as it is, and the call allocates nothing. None makes a new array.
    stream, workspace: as :func:`fastffn.linear`, with :func:`fastffn.ffn_workspace` bytes.

Returns:
    y, [..., d_model_out]: without ``out``, an array of x's kind and dtype.

Raises:
    ValueError, TypeError, BufferError, RuntimeError, MemoryError: as :func:`fastffn.linear`.

The hidden activations [tokens, d_ff] exist only as a tile in the cache. Sums are f32 (int32 for int8). f32 and f16
weights use x and the hidden activations in f32, bf16 weights round them to bf16, int8 weights quantise them per token
to [-127, 127] with scale absmax / 127. The result has the same bits for any number of threads.)";

}  // namespace fastffn::python
