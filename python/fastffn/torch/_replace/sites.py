"""Where the feed-forward layers of a model are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastffn.torch._replace.families import Layer, NotRecognised, families, recognise
from fastffn.torch._replace.modules import site_of


@dataclass(frozen=True, eq=False)
class Site:
    """A feed-forward layer of a model, before it is replaced.

    Attributes:
        name: of the module, as ``model.get_submodule`` takes it.
        family: which of :func:`families` it belongs to.
        number: its place among the model's feed-forward layers, from 0.
        layer: the transformer layer, the first number in its name; None where there is none.
        names: all names under which the model holds this very module.
    """

    name: str
    family: str
    number: int
    names: tuple[str, ...]

    @property
    def layer(self) -> int | None:
        numbers = [int(part) for part in self.name.split(".") if part.isdigit()]
        return numbers[0] if numbers else None


def find(model: nn.Module, operation: str, almost: list[str] | None = None) -> list[Site]:
    """All sites in the order of the model; ValueError where there is none.

    Modules that look like one and have something that their family does not are added to `almost`, with the reason.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    sites: list[Site] = []
    inside: list[str] = []
    almost = [] if almost is None else almost
    for module, all_names in names.items():
        name = all_names[0]
        if any(name.startswith(outer) for outer in inside):
            continue
        try:
            found = recognise(module)
        except NotRecognised as error:
            almost.append(f"{name or 'the model'} ({type(module).__name__}): {error}")
            continue
        if found is None:
            continue
        if not name:
            raise ValueError(
                f"{operation}: the model is itself a feed-forward layer ({type(module).__name__}); "
                "put it into a module that holds it, as its place is what is replaced"
            )
        sites.append(Site(name, found[0], len(sites), tuple(all_names)))
        if found[0] != "bert":  # a BERT layer holds its attention too, but that holds no feed-forward layer
            inside.append(name + ".")
    if almost and not sites:
        raise ValueError(f"{operation}: {type(model).__name__}: cannot replace {almost[0]}" + _more(almost))
    replaced = [name for name, module in model.named_modules() if site_of(module) is not None]
    if not sites and replaced:
        raise ValueError(
            f"{operation}: the feed-forward layers of {type(model).__name__} are packed already ({len(replaced)}, the first"
            f" '{replaced[0]}'); load the original model and give it other rules"
        )
    if not sites:
        known = "\n".join(f"  {name}: {looks}" for name, looks in families().items())
        raise ValueError(
            f"{operation}: {type(model).__name__} has no feed-forward layer that is recognised. Recognised are modules "
            f"with\n{known}\nTeach it another with fastffn.torch.register_family."
        )
    return sites


def _more(texts: list[str]) -> str:
    return "" if len(texts) == 1 else f" (and {len(texts) - 1} more)"


def layer_at(model: nn.Module, site: Site) -> Layer:
    """The recognised layer, looked at again: nothing holds on to weights between."""
    found = recognise(model.get_submodule(site.name))
    assert found is not None
    return found[1]


def install(model: nn.Module, site: Site, new: nn.Module) -> None:
    """Puts the new layer wherever the model holds the old one."""
    layer = layer_at(model, site)
    for name in site.names:
        parent, _, child = name.rpartition(".")
        if site.family == "bert" and name != site.name:
            continue  # changed in place, so under all its names
        layer.install(model.get_submodule(parent), child, new)


def cuda_device_of(model: Any) -> Any:
    """The one CUDA device that a model's tensors lie on, or None."""
    tensors = (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()
    devices = {tensor.device for tensor in tensors}
    return devices.pop() if len(devices) == 1 and all(device.type == "cuda" for device in devices) else None


def check_model(model: Any, operation: str) -> None:
    """Refuses what cannot be packed where it is, before any work."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{operation}: model is {type(model).__name__}, expected a torch.nn.Module")
    kind = type(model).__name__
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"{operation}: {kind}: '{name}' is on the meta device and has no numbers; load the model's weights first "
                "(device_map='cpu' instead of 'meta', or without offloading)"
            )
        if tensor.device.type != "cpu":
            raise ValueError(
                f"{operation}: {kind}: '{name}' is on {tensor.device}, and weights are packed on the CPU; call model.to('cpu') first"
            )
    for name, module in model.named_modules():
        if hasattr(module, "_hf_hook"):
            raise ValueError(
                f"{operation}: {kind}: '{name or 'the model'}' has a hook of accelerate (device_map with offloading), which "
                "moves weights at each call; load the model without device_map, or with device_map='cpu'"
            )
    if any(isinstance(p, torch.nn.parameter.UninitializedParameter) for p in model.parameters()):
        raise ValueError(
            f"{operation}: {kind} has lazy parameters that no call has filled yet; run the model once first"
        )
