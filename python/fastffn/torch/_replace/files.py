"""Models with packed layers in safetensors files: what is written, and how a model comes back from it."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import fastffn as ff
from fastffn.torch._replace.modules import KINDS, PACKED, kind_of, made_of, settings_of, site_of, stamp
from fastffn.torch._replace.sites import Site, find, install, layer_at
from fastffn.torch._replace.weights import ExpertWeights

_KEY = "fastffn"
_VERSION = 1


def save(model: nn.Module, path: str | Path) -> Path:
    """Writes a model whose layers :func:`replace` has packed into one safetensors file.

    The file holds every tensor of the ``state_dict`` (packed weights as uint8, a tensor that several names share once) and
    the buffers outside it (rotary frequencies), and as metadata which layers are packed and how, and the configuration of
    a transformers model. :func:`load` needs nothing else; other programs can read the tensors.

    Args:
        model: with at least one packed layer.
        path: of the file; it is replaced when it exists, whole or not at all.

    Raises:
        ValueError: no packed layer; one that a method of your own made; tensors on the meta device.
        ImportError: safetensors is not installed.
    """
    from safetensors.torch import save_file

    layers = []
    for name, module in model.named_modules():
        site = site_of(module)
        if site is None:
            continue
        kind = kind_of(module)
        if kind is None:
            raise ValueError(
                f"save: {name} is {type(module).__name__}, which only the code that made it can build again (save knows "
                f"{', '.join(KINDS)}); use torch.save(model, path)"
            )
        also = [
            other for other, same in model.named_modules(remove_duplicate=False) if same is module and other != name
        ]
        layers.append({"module": name, "also": also, "kind": kind, "settings": settings_of(module), **site})
    if not layers:
        raise ValueError("save: the model has no packed layers; call fastffn.torch.replace first")
    tensors, aliases = _unique(_all_tensors(model))
    about = {"version": _VERSION, "layers": layers, "aliases": aliases, **_configuration(model)}
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"save: there is no folder '{target.parent}'")
    part = target.with_name(target.name + ".part")
    try:
        save_file(tensors, str(part), metadata={"format": "pt", _KEY: json.dumps(about)})
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def load(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """A model from a file that :func:`save` wrote, without its original feed-forward weights ever being there.

    Args:
        path: of the file.
        model: of the same architecture, not replaced yet; its weights are not used, so it may be built on the meta device
            (``with torch.device("meta"): model = …``). None builds the transformers model that was saved from its
            configuration, without memory for weights.

    Returns:
        The model, in evaluation mode, with all tensors of the file.

    Raises:
        ValueError: not a file of :func:`save`, or of a newer version; damaged packed weights; a model whose layers, names or
            shapes are not those of the file, or that the file does not name.
        FileNotFoundError: no such file.
        ImportError: safetensors, or transformers for model=None, is not installed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"load: there is no file '{path}'")
    tensors, about = _read(Path(path))
    if model is None:
        model = _build(about)
    _install_empty(model, about["layers"], tensors)
    _fill(model, tensors, about["aliases"])
    return model.eval()


def _configuration(model: nn.Module) -> dict[str, Any]:
    """What transformers needs to build the model: its class, its configuration and how it generates."""
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict") or not type(model).__module__.startswith("transformers."):
        return {}
    generation: Any = getattr(model, "generation_config", None)
    settings = json.loads(config.to_json_string(use_diff=False))
    return {
        "class": [type(model).__module__, type(model).__qualname__],
        "config_class": [type(config).__module__, type(config).__qualname__],
        "config": settings,
        "attention": getattr(config, "_attn_implementation", None),
        "generation": None if generation is None else json.loads(generation.to_json_string(use_diff=False)),
    }


def _all_tensors(model: nn.Module) -> dict[str, Any]:
    """The state_dict, and the buffers that it leaves out."""
    return {**model.state_dict(keep_vars=True), **dict(model.named_buffers(remove_duplicate=False))}


def _unique(state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors without the second names of shared ones, and those names with the first."""
    first: dict[Any, str] = {}
    tensors: dict[str, Any] = {}
    aliases: dict[str, str] = {}
    storages: set[int] = set()
    for name, tensor in state.items():
        if tensor.is_meta:
            raise ValueError(f"save: '{name}' is on the meta device and has no numbers")
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and same in first:
            aliases[name] = first[same]
            continue
        first[same] = name
        # A view of a larger tensor, or of one that another name holds: safetensors wants memory of its own.
        whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        fresh = whole and tensor.untyped_storage().data_ptr() not in storages
        storages.add(tensor.untyped_storage().data_ptr())
        tensors[name] = tensor.detach() if fresh else tensor.detach().clone().contiguous()
    return tensors, aliases


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise ValueError(
                    f"load: '{path.name}' was not written by fastffn.torch.save; for an original checkpoint load it with its "
                    "own library and call fastffn.torch.replace"
                )
            about = _description(path.name, metadata[_KEY])
            if about.get("version") != _VERSION:
                raise ValueError(
                    f"load: '{path.name}' has version {about.get('version')} of the description, this fastffn reads {_VERSION}"
                )
            return {name: _aligned(file.get_tensor(name)) for name in list(file.keys())}, about
    except SafetensorError as error:
        raise ValueError(f"load: '{path.name}' is damaged or no safetensors file: {error}") from error


def _description(file: str, text: str) -> dict[str, Any]:
    """What the file says about its layers, of the types that it must have."""
    wanted = {"module": str, "name": str, "family": str, "kind": str, "rule": str, "settings": dict, "shape": list}
    try:
        about = json.loads(text)
    except ValueError as error:
        raise ValueError(f"load: the description in '{file}' is damaged: {error}") from error
    if not isinstance(about, dict):
        raise ValueError(f"load: the description in '{file}' is damaged: it is no object")
    if about.get("version") != _VERSION:
        return about
    for key, kind in (("layers", list), ("aliases", dict), *((k, dict) for k in ("config",) if k in about)):
        if not isinstance(about.get(key), kind):
            raise ValueError(f"load: the description in '{file}' is damaged: no '{key}'")
    for layer in about["layers"]:
        bad = [k for k, kind in wanted.items() if not isinstance(layer, dict) or not isinstance(layer.get(k), kind)]
        if bad:
            raise ValueError(f"load: the description in '{file}' is damaged: a layer without '{bad[0]}'")
    return about


def _aligned(tensor: Any) -> Any:
    """Memory that begins on a cache line, which kernels read faster; a file's mapping rarely does."""
    return tensor if tensor.data_ptr() % 64 == 0 else tensor.clone()


class _ParametersOnMeta(TorchFunctionMode):
    """Weights, which modules make with ``torch.empty``, take no memory; buffers that are computed come out as always."""

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = dict(keywords or {})
        if function is torch.empty and keywords.get("device") is None:
            keywords["device"] = "meta"
        return function(*arguments, **keywords)


def _build(about: dict[str, Any]) -> nn.Module:
    if "class" not in about:
        raise ValueError("load: the file does not say which transformers model it was; pass model=")
    try:
        transformers = importlib.import_module("transformers")
        model_class = _imported(about["class"], transformers.PreTrainedModel)
        config_class = _imported(about["config_class"], transformers.PretrainedConfig)
        config = config_class.from_dict(about["config"])
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"load: {about['class'][1]} cannot be built: {error}; install transformers, or pass model="
        ) from error
    if about.get("attention"):
        config._attn_implementation = about["attention"]
    with _ParametersOnMeta(), torch.no_grad():
        model: nn.Module = model_class(config)
    if about.get("generation") and hasattr(model, "generation_config"):
        model.generation_config = type(model.generation_config).from_dict(about["generation"])
    return model


def _imported(where: list[str], base: Any) -> Any:
    module, name = where
    if not module.startswith("transformers."):  # a file names what is imported: nothing but models
        raise ImportError(f"{module} is not part of transformers")
    found = getattr(importlib.import_module(module), name)
    if not isinstance(found, type) or not issubclass(found, base):
        raise ImportError(f"{name} is no {base.__name__}")
    return found


def _install_empty(model: nn.Module, layers: list[dict[str, Any]], tensors: dict[str, Any]) -> None:
    sites = {site.name: site for site in find(model, "load")}
    for layer in layers:
        site = sites.get(layer["name"])
        if site is None:
            raise ValueError(
                f"load: the file packs '{layer['name']}', and {type(model).__name__} has no such feed-forward layer; "
                f"its first is '{next(iter(sites))}'"
            )
        if site.family != layer["family"]:
            raise ValueError(
                f"load: '{site.name}' is of family '{site.family}', and the file's layer of '{layer['family']}'"
            )
        shape = _shape_of(model, site)
        if shape != layer["shape"]:
            raise ValueError(
                f"load: '{site.name}' of {type(model).__name__} has the shape {_times(shape)}, and the file's layer "
                f"{_times(layer['shape'])}"
            )
        prefix = layer["module"] + "."
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        for name, tensor in own.items():
            if name.removeprefix("shared_") in PACKED and tensor.dtype == torch.uint8:
                try:
                    ff.verify(tensor)
                except ValueError as error:
                    raise ValueError(f"load: '{prefix}{name}': {error}") from error
        try:
            new = made_of(layer["kind"], layer["settings"], own)
        except KeyError as error:
            raise ValueError(f"load: '{layer['name']}': the file has no {error} for kind '{layer['kind']}'") from error
        except TypeError as error:
            raise ValueError(f"load: '{layer['name']}': its settings do not fit '{layer['kind']}': {error}") from error
        stamp(new, {key: layer[key] for key in ("name", "family", "shape", "rule")})
        install(model, site, new)
        for name in layer.get("also", []):  # one module under several names stays one
            owner, _, child = name.rpartition(".")
            setattr(model.get_submodule(owner), child, model.get_submodule(layer["module"]))


def _shape_of(model: nn.Module, site: Site) -> list[int]:
    weights = layer_at(model, site).read()
    shape = [weights.d_model, weights.d_ff]
    return [weights.experts, *shape] if isinstance(weights, ExpertWeights) else shape


def _times(shape: list[int]) -> str:
    return "×".join(map(str, shape))


def _fill(model: nn.Module, tensors: dict[str, Any], aliases: dict[str, str]) -> None:
    """Hands the file's tensors to the model, and puts one tensor where several names share it."""
    wanted, required = _all_tensors(model), model.state_dict(keep_vars=True)
    unknown = sorted(tensors.keys() - wanted.keys())
    missing = sorted(required.keys() - tensors.keys() - aliases.keys())
    if unknown or missing:
        parts = [f"the file has {_some(unknown)}, which the model does not"] if unknown else []
        parts += [f"the model has {_some(missing)}, which the file does not"] if missing else []
        raise ValueError(f"load: {type(model).__name__} is not the model of the file: {'; '.join(parts)}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(wanted[name].shape):
            raise ValueError(
                f"load: '{name}' has shape {tuple(tensor.shape)} in the file, expected {tuple(wanted[name].shape)} of "
                f"{type(model).__name__}"
            )
    for name, tensor in tensors.items():
        _put(model, name, tensor, wanted[name])
    for name, first in aliases.items():
        if first not in tensors:
            raise ValueError(f"load: '{name}' should be '{first}', which the file does not have")
        owner, _, leaf = first.rpartition(".")
        holder = model.get_submodule(owner)
        _put(model, name, holder._parameters.get(leaf, holder._buffers.get(leaf)), wanted.get(name))
    unfilled = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if unfilled:
        raise ValueError(
            f"load: {_some(unfilled)} of {type(model).__name__} is not in the file; build the model on the CPU, not on the "
            "meta device, or leave model= out"
        )


def _put(model: nn.Module, name: str, tensor: Any, old: Any) -> None:
    owner, _, leaf = name.rpartition(".")
    holder = model.get_submodule(owner)
    if leaf in holder._parameters:
        grad = bool(old.requires_grad) and tensor.is_floating_point()
        holder._parameters[leaf] = (
            tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=grad)
        )
    else:
        holder._buffers[leaf] = tensor


def _some(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
