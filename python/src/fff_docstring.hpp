// Docstring of fff, which is not bound by pybind11. The first line is the signature that inspect reads.
#pragma once

namespace fastffn::python {

constexpr const char* fff_docstring =
    R"(fff($module, /, x, tree, w_up=None, w_down=None, b_up=None, b_down=None, *, activation, leaf=None, master_up=None, master_down=None, master_b_up=None, master_b_down=None, mix=None, plan='auto', out=None, stream=None, workspace=None)
--

A fast feedforward layer: a tree chooses the few neurons that run, so time grows with the logarithm of the width.

    y = Σ_trees activation(x · w_up[leaf]ᵀ + b_up[leaf]) · w_down[leaf]ᵀ + b_down[leaf]       leaf form
    y = Σ_trees Σ_path activation(z[n]) · w_out[n],  z[n] = x · w_node[n] + b_node[n]          all-node form

The leaf form is Belcak and Wattenhofer 2023 (arXiv:2308.14711), the all-node form UltraFastBERT's (arXiv:2311.10770).

Args:
    x: [..., d_model], f32, f16 or bf16; the last dimension contiguous, other strides free but not negative. NumPy,
        torch (CPU), or any array with ``__dlpack__`` or the buffer protocol; never copied.
    tree: bytes of :func:`fastffn.pack_tree`, of either form.
    w_up, w_down: leaf form only: packed stacks [trees · 2^depth, d_ff, d_model] and [trees · 2^depth, d_out, d_ff], tree
        after tree, in any format; see :func:`fastffn.pack`.
    b_up, b_down: [trees · 2^depth, d_ff] and [trees · 2^depth, d_out], f32, f16 or bf16; None for none.
    activation: one of :func:`fastffn.activations` that needs no gate (all but "swiglu_clamped").
    leaf: forced leaves, int32 or int64, [..., trees], or [...] of one tree: 0 to 2^depth - 1, whatever the nodes say.
        In the all-node form, nodes of the last level. None: route.
    master_up, master_down: packed weights [d_ff', d_model] and [d_out, d_ff'] of a small dense layer that always runs,
        with the same activation; master_b_up, master_b_down its biases.
    mix: y = σ(mix) · tree + (1 - σ(mix)) · master (arXiv:2405.16836). None: their sum.
    plan: "auto", "per_token" (each token walks on its own) or "grouped" (tokens share the rows of subtrees).
    out: where to write y: [..., d_out], f32, f16 or bf16, writable, sharing no memory with the inputs. It is returned as
        it is, and the call allocates nothing. None makes a new array.
    stream, workspace: with a tree on a CUDA device (:class:`fastffn.DeviceTree`; leaves and a master are then :class:`fastffn.DeviceWeight`,
        and every other array lies there too): as :func:`fastffn.linear`, with :func:`fastffn.fff_workspace` bytes.

Returns:
    y, [..., d_out]: without ``out``, an array of x's kind and dtype.

Raises:
    ValueError, TypeError, BufferError, RuntimeError, MemoryError: as :func:`fastffn.linear`.

Decisions and sums are in f32 whatever the tree's formats are (leaves: as :func:`fastffn.ffn`); NaN goes left. The result
has the same bits for any number of threads, and in the all-node form for any plan and any number of tokens.

On CUDA devices (never run on a GPU so far: tested on a CUDA runtime for the CPU) decisions are in f32 too; "grouped", which "auto"
chooses for thousands of tokens, takes z from tensor cores where x and the deciding rows are both bf16 or both f16: sums in another
order, so a token whose z is within rounding of a threshold may take the other side. All else has the same bits for any plan and any
number of tokens. Biases and forced leaves are contiguous there, and forced leaves are not checked by the host: a token that is sent
to a leaf that does not exist gets a row of NaN.)";

}  // namespace fastffn::python
