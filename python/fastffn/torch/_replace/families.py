"""Which modules of a model are feed-forward layers, told by their parts; what they compute is proven by numbers afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastffn.torch._replace.bitnet import is_bit_linear, read_linear
from fastffn.torch._replace.modules import Passthrough, ResidualNorm
from fastffn.torch._replace.weights import CLAMPED, DenseWeights, ExpertWeights, Weights, activation_of


class NotRecognised(ValueError):
    """A module with the parts of a feed-forward layer, and something else that its family does not have."""


@dataclass(frozen=True)
class Layer:
    """A module that was recognised.

    Attributes:
        read: gives its weights. Called late: the weights of one layer at a time are needed.
        forward: runs the original, y = forward(x) or forward(x, ids, weights).
        install: puts the new layer in its place: install(parent, name of the module in it, new layer).
        inputs: the submodule whose first arguments are the layer's inputs.
    """

    read: Callable[[], Weights]
    forward: Callable[..., Any]
    install: Callable[[nn.Module, str, nn.Module], None]
    inputs: nn.Module


@dataclass(frozen=True)
class Family:
    """A way in which models write a feed-forward layer: its name, what it looks like, and its recogniser."""

    name: str
    looks: str
    recognise: Callable[[nn.Module], Layer | None]


def _swap(parent: nn.Module, name: str, new: nn.Module) -> None:
    setattr(parent, name, new)


def _linear_parts(module: nn.Module, names: tuple[str, ...]) -> tuple[Any, ...] | None:
    """The submodules of these names, if all are linear layers."""
    parts = tuple(getattr(module, name, None) for name in names)
    return parts if all(_is_linear(part) for part in parts) else None


def _is_linear(module: Any) -> bool:
    """nn.Linear and nothing derived from it, which may compute something else; GPT-2's Conv1D; BitNet's."""
    return type(module) is nn.Linear or _is_conv1d(module) or is_bit_linear(module)


def _is_conv1d(module: Any) -> bool:
    """GPT-2's linear layer, whose weight is [in, out]."""
    return type(module).__name__ == "Conv1D" and type(module).__module__ == "transformers.pytorch_utils"


def _activation(module: nn.Module) -> str:
    """The activation of a layer, from whichever name its model gives it."""
    found = [getattr(module, name) for name in _ACTIVATION_NAMES if callable(getattr(module, name, None))]
    if not found:
        raise NotRecognised(f"it has no activation under {', '.join(_ACTIVATION_NAMES)}")
    name = activation_of(found[0])
    if name is None:
        label = getattr(found[0], "__name__", type(found[0]).__name__)
        from fastffn import activations

        raise NotRecognised(f"its activation {label} is none of {', '.join(activations())}")
    return name


_ACTIVATION_NAMES = ("act_fn", "activation_fn", "act", "activation", "intermediate_act_fn", "hidden_act")

# gate, up, down
_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("wi_0", "wi_1", "wo"))
# up, down
_PLAIN = (
    ("fc1", "fc2"),
    ("c_fc", "c_proj"),
    ("lin1", "lin2"),
    ("up_proj", "down_proj"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("wi", "wo"),
)


def _gated(module: nn.Module) -> Layer | None:
    parts = next((parts for names in _GATED if (parts := _linear_parts(module, names))), None)
    if parts is None:
        return None
    norm = getattr(module, "ffn_sub_norm", None)
    activation = _activation(module)

    def read() -> DenseWeights:
        options: dict[str, Any] = {"activation": activation}
        scales: dict[str, float] = {}
        for role, linear in zip(("gate", "up", "down"), parts, strict=True):
            weight, bias, scale = read_linear(linear)
            options[f"w_{role}"], options[f"b_{role}"] = weight, bias
            if scale is not None:
                scales[f"w_{role}"] = scale
        if norm is not None:
            options |= {"sub_norm": norm.weight.detach(), "sub_norm_eps": _eps(norm)}
        quantised = any(is_bit_linear(part) for part in parts)
        return DenseWeights(**options, scales=scales, tolerance=0.1 if quantised else 0.0)

    return Layer(read, module, _swap, module)


def _eps(norm: nn.Module) -> float:
    for name in ("variance_epsilon", "eps", "epsilon"):
        if isinstance(getattr(norm, name, None), float):
            return float(getattr(norm, name))
    raise NotRecognised("its sub-norm has no epsilon")


def _fused_gated(module: nn.Module) -> Layer | None:
    """Phi-3: gate and up are one linear layer."""
    parts = _linear_parts(module, ("gate_up_proj", "down_proj"))
    if parts is None:
        return None
    activation = _activation(module)

    def read() -> DenseWeights:
        gate_up, down = (part.weight.detach() for part in parts)
        half = gate_up.shape[0] // 2
        bias = None if parts[0].bias is None else parts[0].bias.detach()
        return DenseWeights(
            w_up=gate_up[half:], w_gate=gate_up[:half], w_down=down, activation=activation,
            b_up=None if bias is None else bias[half:], b_gate=None if bias is None else bias[:half],
            b_down=None if parts[1].bias is None else parts[1].bias.detach(),
        )  # fmt: skip

    return Layer(read, module, _swap, module)


def _plain(module: nn.Module) -> Layer | None:
    parts = next((parts for names in _PLAIN if (parts := _linear_parts(module, names))), None)
    if parts is None or any(is_bit_linear(part) for part in parts):
        return None
    activation = _activation(module)
    return Layer(lambda: _two(parts[0], parts[1], activation), module, _swap, module)


def _two(up: nn.Module, down: nn.Module, activation: str) -> DenseWeights:
    biases = [None if linear.bias is None else linear.bias.detach() for linear in (up, down)]
    w_up, w_down = (linear.weight.detach().T if _is_conv1d(linear) else linear.weight.detach() for linear in (up, down))
    return DenseWeights(w_up, w_down, b_up=biases[0], b_down=biases[1], activation=activation)


def _bert(module: nn.Module) -> Layer | None:
    """BERT, MiniLM, RoBERTa, ELECTRA …: up in `intermediate`, down with the residual and its norm in `output`."""
    first: Any = getattr(module, "intermediate", None)
    last: Any = getattr(module, "output", None)
    if not isinstance(first, nn.Module) or not isinstance(last, nn.Module):
        return None
    if not isinstance(getattr(last, "LayerNorm", None), nn.LayerNorm):
        return None
    up: Any = getattr(first, "dense", None)
    down: Any = getattr(last, "dense", None)
    if type(up) is not nn.Linear or type(down) is not nn.Linear:
        return None
    activation = _activation(first)

    def forward(x: Any) -> Any:
        return down(first(x))

    def install(parent: nn.Module, name: str, new: nn.Module) -> None:
        layer = getattr(parent, name)
        layer.output = ResidualNorm(new, layer.output.LayerNorm, getattr(layer.output, "dropout", None))
        layer.intermediate = Passthrough()

    return Layer(lambda: _two(up, down, activation), forward, install, first)


def _experts(module: nn.Module) -> Layer | None:
    """transformers 5: all experts in two parameters, called with the router's picks. The router stays where it is."""
    down = getattr(module, "down_proj", None)
    up = getattr(module, "gate_up_proj", None)
    up = getattr(module, "up_proj", None) if up is None else up
    if not isinstance(up, nn.Parameter) or not isinstance(down, nn.Parameter) or up.ndim != 3 or down.ndim != 3:
        return None
    gated = hasattr(module, "gate_up_proj")
    transposed = bool(getattr(module, "is_transposed", False))
    interleaved = gated and not getattr(module, "is_concatenated", True)
    if getattr(module, "has_post_expert_norm", False):
        raise NotRecognised("its experts end in a norm")
    if getattr(module, "_is_expert_parallel", False):
        raise NotRecognised("its experts are spread over devices")
    if not hasattr(module, "is_transposed") and _takes(module) < 3:
        raise NotRecognised("its experts are not called with (x, ids, weights)")
    clamped = float(getattr(module, "alpha", 0.0)) == 1.702 and float(getattr(module, "limit", 0.0)) == 7.0
    activation = CLAMPED if clamped and interleaved else _activation(module)

    def read() -> ExpertWeights:
        halves = _split(up.detach(), gated, transposed, interleaved)
        b_up = getattr(module, "gate_up_proj_bias", None) if gated else getattr(module, "up_proj_bias", None)
        b_down = getattr(module, "down_proj_bias", None)
        biases = (None, None) if b_up is None else _split(b_up.detach()[..., None], gated, False, interleaved)
        gate_bias, up_bias = (None if b is None else b[..., 0] for b in biases)
        w_down = down.detach().transpose(1, 2) if transposed else down.detach()
        return ExpertWeights(
            w_gate=halves[0], w_up=halves[1], w_down=w_down, b_gate=gate_bias, b_up=up_bias,
            b_down=None if b_down is None else b_down.detach(), activation=activation,
        )  # fmt: skip

    return Layer(read, module, _swap, module)


def _split(weights: Any, gated: bool, transposed: bool, interleaved: bool) -> tuple[Any, Any]:
    """(gate or None, up) as views [experts, d_ff, …]."""
    if transposed:
        weights = weights.transpose(1, 2)
    if not gated:
        return None, weights
    if interleaved:
        return weights[:, 0::2], weights[:, 1::2]
    half = weights.shape[1] // 2
    return weights[:, :half], weights[:, half:]


def _takes(module: nn.Module) -> int:
    """Positional arguments of a module's forward."""
    import inspect

    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return sum(parameter.kind in kinds for parameter in inspect.signature(module.forward).parameters.values())


_FAMILIES: list[Family] = [
    Family("experts", "gate_up_proj and down_proj [experts, …], called with the router's picks (Mixtral, OLMoE, Qwen-MoE, DeepSeek, GPT-OSS; transformers 5)", _experts),
    Family("gated", "gate_proj, up_proj, down_proj and act_fn (Llama, Qwen, Mistral, Gemma, BitNet with its sub-norm), w1 w3 w2, wi_0 wi_1 wo", _gated),
    Family("fused gated", "gate_up_proj, down_proj and an activation (Phi-3, GLM)", _fused_gated),
    Family("bert", "intermediate.dense, output.dense and output.LayerNorm (BERT, MiniLM, RoBERTa, ELECTRA)", _bert),
    Family("plain", "fc1 and fc2, c_fc and c_proj, lin1 and lin2, up_proj and down_proj, wi and wo, with an activation (GPT-2, Phi, CLIP, DistilBERT, T5)", _plain),
]  # fmt: skip


def families() -> dict[str, str]:
    """What :func:`replace` recognises: the names of its families, and what a layer of each looks like."""
    return {family.name: family.looks for family in _FAMILIES}


def register_family(name: str, recognise: Callable[[nn.Module], Weights | None], looks: str = "registered") -> None:
    """Teaches :func:`replace` another kind of feed-forward layer.

    Args:
        name: of the family, in messages and in saved files. A name that is there already is replaced.
        recognise: called with every module of a model; gives its :class:`DenseWeights` or :class:`ExpertWeights`, or None
            for modules that are none of this family. It is asked before the families that are built in. The module's
            ``forward`` must be y = f(x), or y = f(x, ids, weights) for experts; what the module computes is compared with
            the weights that were given, and refused where it differs. It is also called on modules without weights (on the
            meta device) by :func:`load`, and then only the shapes of what it gives count.
        looks: one line for error messages.

    >>> def mine(module):
    ...     if not isinstance(module, MyFeedForward):
    ...         return None
    ...     return fastffn.torch.DenseWeights(module.a.weight, module.b.weight, activation="relu")
    >>> fastffn.torch.register_family("mine", mine)
    """

    def layer(module: nn.Module) -> Layer | None:
        weights = recognise(module)
        if weights is None:
            return None
        if not isinstance(weights, (DenseWeights, ExpertWeights)):
            raise TypeError(
                f"register_family: {name!r} gave {type(weights).__name__}, expected DenseWeights, ExpertWeights or None"
            )
        return Layer(lambda: weights, module, _swap, module)

    _FAMILIES[:] = [Family(name, looks, layer), *(family for family in _FAMILIES if family.name != name)]


def recognise(module: nn.Module) -> tuple[str, Layer] | None:
    """The first family that knows the module. NotRecognised where it looks like one and is not."""
    with torch.no_grad():
        for family in _FAMILIES:
            layer = family.recognise(module)
            if layer is not None:
                return family.name, layer
    return None
