"""The function `replace`: one layer at a time from plain to packed."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from fastffn.report.progress import Progress
from fastffn.torch._replace import capture as inputs_of
from fastffn.torch._replace.modules import stamp
from fastffn.torch._replace.rules import assign
from fastffn.torch._replace.sites import Site, check_model, cuda_device_of, find, install, layer_at
from fastffn.torch._replace.summary import LayerSummary, ReplaceSummary
from fastffn.torch._replace.weights import DenseWeights, ExpertWeights, Weights, bytes_of, tensors_of

_RANDOM_ROWS = 64
# What rounding to a dtype may do to the result of a layer that is what it seems to be.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}


def replace(
    model: nn.Module,
    rules: Any,
    *,
    calibration: Any = None,
    rows: int = 1024,
    progress: bool | None = None,
    seed: int = 0,
) -> ReplaceSummary:
    """Swaps the feed-forward layers of a transformer for packed ones, in place; ``generate()`` goes on working.

    Layers are recognised by their parts (:func:`families`), and each is compared with what its weights should give before it
    is replaced: a module that computes something else is refused, not broken. Attention, norms, embeddings and the routers
    of mixtures stay what they are. One layer after the other is packed and its original dropped, so that the peak is the
    model and one layer, if nothing else holds on to the original.

    The new layers are for inference, in the dtype that the model has: x and y are f32, f16 or bf16. Their packed weights
    are uint8 buffers: ``state_dict`` carries them, ``.to(dtype)`` leaves them alone, no optimiser sees them. They have no
    dropout inside. Run under ``torch.no_grad()``, as ``generate()`` does.

    Args:
        model: any model whose layers are recognised: Llama, Qwen, Mistral, Gemma, Phi; BERT, MiniLM; Mixtral, OLMoE,
            Qwen-MoE, DeepSeek, GPT-OSS (transformers 5); BitNet; and what :func:`register_family` taught. With weights
            loaded, on the CPU or one CUDA device; from there it is brought to the CPU for the work, and back.
        rules: what becomes of the layers:

            - a format of :func:`fastffn.pack`: "bf16", "int8", "int4", "ternary", "sparse24", "f16", "f32";
            - a dict of options: {"format": "int4", "group": 32}, {"format": "int8", "w_down": "bf16"},
              {"format": "sparse24", "prune": "wanda"};
            - a method: :class:`LowRank`, :class:`Moefication`, :class:`Cmoe`, or any object with ``build(weights, inputs)``
              that returns a module;
            - a dict from layers to any of these, or to None for "as it was"; the first key that fits counts, and layers
              that none fits stay as they are. A key is a pattern of parts of the layer's name ("layers.0", "shared_expert",
              "*"), the number of a transformer layer (negative: from the end), or a function of a :class:`Site`.
        calibration: token ids [batch, tokens], a dict of the model's arguments, or a list of those. The model runs on it
            once, and what its layers get serves for errors and for methods that look at inputs. Without it errors are
            measured on random inputs, which say less.
        rows: inputs that are kept per layer, of calibration.
        progress: a progress bar on stderr: True, False, or None for where that is a terminal.
        seed: of random inputs.

    Returns:
        A :class:`ReplaceSummary`: bytes and errors per layer; prints as a table, draws itself with ``save("x.svg")``.

    Raises:
        ValueError: no layer that is recognised, a layer that computes something else than its parts say, a rule that fits no
            layer, weights that the format cannot hold; weights on another device, on the meta device, or moved by hooks; a
            method that needs calibration without it. What was replaced before the error stays replaced; the message names
            the layer.
        TypeError: a model, rule or calibration of another kind.
    """
    if (device := cuda_device_of(model)) is not None:
        return _by_way_of_the_cpu(model, device, rules, calibration, rows=rows, progress=progress, seed=seed)
    check_model(model, "replace")
    if rows < 1:
        raise ValueError(f"replace: rows is {rows}, expected 1 or more")
    left_out: list[str] = []
    sites = find(model, "replace", left_out)
    methods = assign(rules, sites)
    batches = None if calibration is None else inputs_of.batches_of(calibration)
    if batches is None:
        for site, method in zip(sites, methods):
            if getattr(method, "needs_inputs", False):
                raise ValueError(
                    f"replace: {site.name}: {method} needs calibration: pass token ids of some real text, calibration=ids"
                )
    bar = Progress(len(sites) + (len(sites) if batches else 0)) if _wanted(progress) else None
    caught: dict[str, inputs_of.Rows] = {}
    if batches is not None:
        if bar is not None:
            bar.stage("calibration", len(sites))
        caught = inputs_of.capture(model, sites, batches, rows)
    done = []
    for site, method in zip(sites, methods):
        if bar is not None:
            bar.stage(site.name, 1)
        arguments = caught[site.name].take() if caught else None
        done.append(_one(model, site, method, arguments, seed))
    if bar is not None:
        bar.finish()
    kind = "calibration" if batches is not None else "random"
    most = max(found.count for found in caught.values()) if caught else _RANDOM_ROWS
    return ReplaceSummary(tuple(done), type(model).__name__, kind, most, tuple(left_out))


def _by_way_of_the_cpu(model: nn.Module, device: Any, rules: Any, calibration: Any, **options: Any) -> ReplaceSummary:
    """replace() of a model on a CUDA device, where weights are neither packed nor factorised."""
    given = tree_map(lambda t: t.cpu() if isinstance(t, torch.Tensor) else t, calibration)
    model.to("cpu")
    try:
        summary = replace(model, rules, calibration=given, **options)
    except BaseException:
        model.to(device)
        raise
    try:
        model.to(device)
    except RuntimeError as error:
        model.to("cpu")
        raise RuntimeError(f"replace: the model is replaced, and stays on the CPU: {error}") from error
    return summary


def _wanted(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress


def _one(model: nn.Module, site: Site, method: Any, arguments: Any, seed: int) -> LayerSummary:
    layer = layer_at(model, site)
    weights = layer.read()
    _check_weights(site, weights)
    dtype = next(iter(model.get_submodule(site.name).parameters())).dtype
    inputs = None
    if arguments is None or not isinstance(weights, DenseWeights):
        arguments = arguments or inputs_of.made_up(weights, _RANDOM_ROWS, dtype, seed + site.number)
    else:
        inputs = arguments[0].float()
    shape: tuple[int, ...] = (weights.d_model, weights.d_ff)
    if isinstance(weights, ExpertWeights):
        shape = (weights.experts, *shape)
    size = bytes_of(weights)
    if method is None:
        return LayerSummary(site.name, site.family, "", shape, size, size, float("nan"), float("nan"), 0.0)
    with torch.no_grad():
        expected = weights.reference(*arguments)
        with _evaluating(model.get_submodule(site.name)):
            before = _relative(_original(layer, arguments), expected)
        _check_is_what_it_seems(model, site, weights, before, dtype)
        begin = time.perf_counter()
        try:
            new = method.build(weights, inputs)
        except (ValueError, TypeError) as error:
            raise type(error)(f"replace: {site.name}: {error}".replace("replace: replace:", "replace:")) from error
        seconds = time.perf_counter() - begin
        loss = _relative(new(*arguments), expected)
        after = sum(t.numel() * t.element_size() for t in (*new.buffers(), *new.parameters()))
    new.train(model.get_submodule(site.name).training)
    stamp(new, {"name": site.name, "family": site.family, "shape": list(shape), "rule": str(method)})
    install(model, site, new)
    return LayerSummary(site.name, site.family, str(method), shape, size, after, loss, before, seconds)


def _check_weights(site: Site, weights: Weights) -> None:
    for name, tensor in tensors_of(weights).items():
        if not tensor.is_floating_point():
            raise ValueError(
                f"replace: {site.name}: {name} is {tensor.dtype}, expected f32, f16, bf16 or f64: quantised elsewhere? Load "
                "the model without quantization_config"
            )
        if "float8" in str(tensor.dtype):
            raise ValueError(f"replace: {site.name}: {name} is {tensor.dtype}; load a bf16 copy of the model")


def _check_is_what_it_seems(model: nn.Module, site: Site, weights: Weights, error: float, dtype: Any) -> None:
    allowed = max(_TOLERANCE.get(dtype, 1e-3), weights.tolerance)
    if not error <= allowed:
        kind = type(model.get_submodule(site.name)).__name__
        raise ValueError(
            f"replace: {site.name}: {kind} has the parts of family '{site.family}' but computes something else: its result is "
            f"{error:.2g} away from that of its weights (allowed {allowed:g}). Leave it out with a rule "
            f'{{"{site.name}": None, …}}, or teach it with fastffn.torch.register_family'
        )


def _original(layer: Any, arguments: tuple[Any, ...]) -> Any:
    """What the model's own layer gives; None where it cannot be called like a feed-forward layer."""
    try:
        return layer.forward(*arguments)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return None


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = {child: child.training for child in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for child, value in training.items():
            child.training = value


def _relative(y: Any, expected: Any) -> float:
    y = y[0] if isinstance(y, tuple) else y
    if not isinstance(y, torch.Tensor) or tuple(y.shape) != tuple(expected.shape):
        return float("inf")
    size = float(expected.norm())
    return float((y.float() - expected).norm()) / (size if size > 0 else 1.0)
