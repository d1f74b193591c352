"""What the modules share: packed weights as buffers, and loading them with checks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import fastffn as ff

from ._device_weights import Held, tensor, tree, weight


def absent_last(module: nn.Module) -> None:
    """Absent buffers after those that are there: torch.export counts absent ones in one of two lists that it matches."""
    for name in [name for name, buffer in module._buffers.items() if buffer is None]:
        module._buffers[name] = module._buffers.pop(name)


class PackedModule(nn.Module):
    """An nn.Module whose weights are either packed uint8 buffers (inference) or plain parameters of the same names.

    Subclasses say in `_expected` what each packed weight must be.
    """

    trainable: bool

    def _expected(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the weights by name, as :attr:`fastffn.PackedInfo.shape` says them; those of plain ones too."""
        raise NotImplementedError

    def _hold(self, name: str, value: Any) -> None:
        """Registers a weight or a bias as what it is here: a parameter of a trainable module, else a buffer."""
        if value is None:
            self.register_parameter(name, None) if self.trainable else self.register_buffer(name, None)
        elif self.trainable:
            self.register_parameter(name, nn.Parameter(value))
        else:
            self.register_buffer(name, value.detach())

    def held_weights(self, *names: str) -> list[Any]:
        """The packed weights of these names, as eager calls take them fastest; None for one that is not there."""
        held = self._buffers
        given = [held[name] for name in names]
        if torch.compiler.is_compiling() or not given[0].is_cuda:
            return given
        mine: Held = self.__dict__.setdefault("_on_device", Held())
        return [mine.get_weight(name, w) for name, w in zip(names, given, strict=True)]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # `to`, `cuda`, `cpu`: packed weights are other bytes on the other kind of device.
        moved = moved_weights(self._buffers, self._expected(), fn)
        super()._apply(fn, recurse)
        self._buffers.update(moved)
        return self

    def _check_packed(self, key: str, name: str, packed: Any, verify: bool) -> None:
        """ValueError, naming the key, unless these are the bytes of a weight that belongs here."""
        where = f"{type(self).__name__}: {key}"
        if not isinstance(packed, torch.Tensor) or packed.dtype != torch.uint8 or packed.dim() != 1:
            what = (
                f"a {packed.dtype} tensor of shape {tuple(packed.shape)}" if hasattr(packed, "dtype") else type(packed)
            )
            raise ValueError(
                f"{where} is {what}, expected packed weights: one-dimensional uint8, as fastffn.pack makes them"
                + ("; plain weights load into a module made with trainable=True" if not verify else "")
            )
        if packed.device.type == "meta" or not packed.numel():
            return  # a shell, before its weights are loaded
        try:
            on_device = weight(packed)
            found = ff.info(on_device).shape
            if verify:
                ff.verify(on_device)
        except (ValueError, BufferError) as error:
            raise ValueError(f"{where}: {error}") from error
        expected = self._expected()[name]
        if found != expected:
            raise ValueError(f"{where} holds weights of shape {found}, expected {expected}")

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, strict: bool, missing_keys: Any, unexpected_keys: Any,
        error_msgs: Any,
    ) -> None:  # fmt: skip
        # Packed weights may come in any format, so with any number of bytes: the buffer takes the size of what is loaded.
        for name in self._expected():
            given = state_dict.get(prefix + name)
            mine = getattr(self, name, None)
            if given is None or mine is None:
                continue
            if self.trainable:
                if isinstance(given, torch.Tensor) and given.dtype == torch.uint8:
                    error_msgs.append(
                        f"{type(self).__name__}: {prefix + name} holds packed weights, expected plain ones of shape"
                        f" {self._expected()[name]}: this module trains"
                    )
                continue
            try:
                if isinstance(given, torch.Tensor) and given.device.type != "meta" and not given.numel():
                    raise ValueError(f"{type(self).__name__}: {prefix + name} is empty, expected packed weights")
                if isinstance(given, torch.Tensor) and given.dtype == torch.uint8 and not given.is_meta:
                    # Bytes of a module elsewhere: in the order that this one, or with assign=True their own device, reads.
                    keeps = local_metadata.get("assign_to_params_buffers", False) or mine.is_meta
                    given = in_layout_of(given, given.device if keeps else mine.device)
                    if given is not state_dict[prefix + name]:
                        state_dict = {**state_dict, prefix + name: given}
                self._check_packed(prefix + name, name, given, verify=True)
            except (ValueError, RuntimeError) as error:
                text = str(error)
                error_msgs.append(
                    text if text.startswith(type(self).__name__) else f"{type(self).__name__}: {prefix + name}: {text}"
                )
                continue
            if mine.shape != given.shape:
                self._buffers[name] = torch.empty_like(given, device=mine.device)
        # A shell gets memory with its weights.
        for name, mine in self._buffers.items():
            given = state_dict.get(prefix + name)
            if mine is not None and mine.device.type == "meta" and given is not None and not error_msgs:
                self._buffers[name] = torch.empty_like(given, dtype=mine.dtype)
        if not error_msgs:
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )

    def _formats(self) -> str:
        """What the packed weights are, for print."""
        held = {name: getattr(self, name) for name in self._expected() if getattr(self, name, None) is not None}
        names = []
        for name, value in held.items():
            loaded = value.device.type != "meta" and value.numel() and value.dtype == torch.uint8
            names.append(f"{name}={ff.info(weight(value)).format if loaded else 'nothing yet'}")
        return ", ".join(names)


def moved_weights(buffers: Any, names: Any, fn: Any) -> dict[str, Any]:
    """The packed weights of these names where `fn` takes tensors, if that is another device: in the order of bytes there. Before
    anything of the module is moved, as a format may have no kernels there."""
    moved = {}
    for name in names:
        w = buffers.get(name)
        if w is None or w.is_meta or not w.numel() or w.dtype != torch.uint8:
            continue
        device = fn(w.new_empty(0)).device
        if device != w.device and device.type in ("cpu", "cuda"):
            moved[name] = in_layout_of(w, device, name)
    return moved


def is_for_devices(packed: Any) -> bool:
    """Whether bytes in the host's memory, a weight's or a tree's, are in the order that devices read."""
    if packed.numel() < 64:
        return False
    first = bytes(packed[:64].tolist())
    return first[11] == 2 if first.startswith(b"fastffn\0") else first.startswith(b"ffftree\0") and first[56] == 2


def in_layout_of(w: Any, device: Any, name: str = "") -> Any:
    """Packed bytes, wherever and in whichever order they are, on `device` in its order. `name`: "tree" for a tree."""
    if w.is_cuda:
        held = tree(w) if name == "tree" else weight(w)
        if device.type == "cuda":
            return w if w.device == device else tensor(ff.to_device(held, device))
        return ff.to_cpu(held) if device.type == "cpu" else w.to(device)
    if device.type == "cuda":
        return tensor(ff.to_device(w, device))
    return ff.to_cpu(w) if device.type == "cpu" and is_for_devices(w) else w
