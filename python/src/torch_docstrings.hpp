// Docstrings of the functions of fastffn.torch. The first line is the signature that inspect reads.
#pragma once

namespace fastffn::python {

constexpr const char* torch_linear_docstring =
    R"(torch_linear($module, /, x, w, bias=None, *, out=None, stream=None, workspace=None, out_features=None)
--

:func:`fastffn.linear` for torch tensors, which torch can trace, differentiate, batch and cast.

Args:
    x, w, bias, out: as :func:`fastffn.linear`. x may have any strides (it is copied where its last dimension is not
        contiguous). Gradients reach x and bias; with out= they are refused.
    out_features: the width of y, compared with the weight's header. Needed where a call is traced (torch.compile,
        torch.export), because a traced weight has no bytes to read.

Under autocast of the CPU x is cast to its dtype, which is then y's. What happens to each kind of tensor: see
:mod:`fastffn.torch`.)";

constexpr const char* torch_ffn_docstring =
    R"(torch_ffn($module, /, x, w_up, w_down, w_gate=None, b_up=None, b_down=None, b_gate=None, *, activation, segments=None, sub_norm=None, sub_norm_eps=1e-05, gate_first="auto", out=None, stream=None, workspace=None, out_features=None)
--

:func:`fastffn.ffn` for torch tensors, which torch can trace, differentiate, batch and cast.

Args:
    out_features: the width of y, compared with the weight's header; x's where a call is traced that does not say.
    others: as :func:`fastffn.ffn`. Gradients reach x and the biases; with out= they are refused.

Under autocast of the CPU x is cast to its dtype, which is then y's. What happens to each kind of tensor: see
:mod:`fastffn.torch`.)";

constexpr const char* torch_moe_docstring =
    R"(torch_moe($module, /, x, ids, weights, w_up, w_down, w_gate=None, b_up=None, b_down=None, b_gate=None, *, activation, shared=None, special=None, weights_on_input=False, load=None, out=None, stream=None, workspace=None, out_features=None)
--

:func:`fastffn.moe` for torch tensors, which torch can trace, differentiate, batch and cast.

Args:
    out_features: the width of y, compared with the weight's header; x's where a call is traced that does not say.
    load: not where a call is traced or recorded.
    others: as :func:`fastffn.moe`. Gradients reach x and weights; with out= they are refused.

Under autocast of the CPU x is cast to its dtype, which is then y's; weights are not. What happens to each kind of tensor:
see :mod:`fastffn.torch`.)";

constexpr const char* torch_fff_docstring =
    R"(torch_fff($module, /, x, tree, w_up=None, w_down=None, b_up=None, b_down=None, *, activation, leaf=None, master_up=None, master_down=None, master_b_up=None, master_b_down=None, mix=None, plan='auto', out=None, stream=None, workspace=None, out_features=None)
--

:func:`fastffn.fff` for torch tensors, which torch can trace, batch and cast.

Args:
    out_features: the width of y, compared with the weight's header; x's where a call is traced that does not say.
    others: as :func:`fastffn.fff`. There are no gradients: trees are trained by :class:`fastffn.torch.FFF`.

Under autocast of the CPU x is cast to its dtype, which is then y's. What happens to each kind of tensor: see
:mod:`fastffn.torch`.)";

constexpr const char* torch_route_topk_docstring =
    R"(torch_route_topk($module, /, logits, k, *, score='softmax', renormalize=False, scale=1.0, bias=None, correction_bias=None, groups=1, topk_groups=None, group_score='max', top_p=1.0, gamma=None, norm_eps=1e-06, capacity_factor=None, out=None, stream=None, workspace=None)
--

:func:`fastffn.route_topk` for torch tensors, which torch can trace, differentiate and batch.

Arguments are those of :func:`fastffn.route_topk`. Gradients reach the logits through the weights of the picks; the picks
themselves are constants. Autocast changes nothing: routers compute in f32.)";

}  // namespace fastffn::python
