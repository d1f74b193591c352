"""Packed weights and trees on CUDA devices, which are plain uint8 tensors there too: what their headers say, without asking the device.

A launch depends on the header, and a call must not wait for the device to read it. So the first 64 bytes (128 of a tree) are read
once, when a weight is first seen, and remembered here by the tensor's storage. Operators and modules keep plain tensors: their schemas, traced
and exported graphs, state_dicts and safetensors are the same on the CPU and on devices, and nothing has to travel beside the bytes.

An entry is found by the address of the storage's own object and by where in it the tensor lies. It holds a weak reference to the
storage, without its memory: as long as the entry lives, no other storage can have that address, and one that died is not taken for
it. A change in place (load_state_dict, copy_) is seen by the tensor's version; only ``.data`` and tensors of inference mode have
none that counts. While a CUDA graph is captured nothing may be read: a weight that was never used before is refused then, by name.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fastffn import _core


class _Seen(NamedTuple):
    storage: StorageWeakRef
    version: int
    header: bytes


_seen: dict[tuple[int, int, int], _Seen] = {}
_swept = 64  # entries when dead ones are looked for next


def _version(w: Any) -> int:
    return 0 if w.is_inference() else int(w._version)


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def remember(w: Any, header: bytes) -> None:
    """Notes the header of a weight that lies on a device."""
    global _swept
    if len(_seen) >= _swept:
        for key in [key for key, seen in _seen.items() if seen.storage.expired()]:
            del _seen[key]
        _swept = max(64, 2 * len(_seen))
    storage = w.untyped_storage()
    _seen[storage._cdata, w.storage_offset(), w.numel()] = _Seen(StorageWeakRef(storage), _version(w), header)


def _open(w: Any, kind: str) -> Any:
    make = getattr(_core, kind)
    seen = _seen.get((w.untyped_storage()._cdata, w.storage_offset(), w.numel()))
    if seen is not None and not seen.storage.expired() and seen.version == _version(w):
        return make(w, None, seen.header)
    if _capturing():
        raise RuntimeError(
            f"{kind}: a CUDA graph is being captured, and these packed bytes were never used before: their header has to be read"
            " from the device. Call the layer once before the capture"
        )
    found = make(w)
    remember(w, found.header)
    return found


def device_weight(w: Any) -> _core.DeviceWeight:
    """The weight that a uint8 tensor on a CUDA device holds; the first time waits for the device."""
    found: _core.DeviceWeight = _open(w, "device_weight")
    return found


def weight(w: Any) -> Any:
    """What the library takes for a packed tensor: itself on the CPU, a DeviceWeight on a device."""
    if w is None or isinstance(w, _core.DeviceWeight) or not w.is_cuda:
        return w
    return device_weight(w)


def tree(w: Any) -> Any:
    """The same of a packed tree: a DeviceTree on a device."""
    if isinstance(w, _core.DeviceTree) or not w.is_cuda:
        return w
    return _open(w, "device_tree")


def all_weights(parts: Any) -> list[Any]:
    """weight() of each in a list."""
    return [weight(w) for w in parts]


def tensor(w: Any) -> Any:
    """The other way: the uint8 tensor of a DeviceWeight or DeviceTree, anything else as it is."""
    if not isinstance(w, (_core.DeviceWeight, _core.DeviceTree)):
        return w
    if not isinstance(w.array, torch.Tensor):
        raise TypeError(f"a weight on a device is a {type(w.array).__name__}, expected a torch tensor as its array")
    remember(w.array, w.header)
    return w.array


class Held(dict[str, tuple[Any, int, Any]]):
    """A module's own weights on a device by name, so that an eager call finds them in 0.1 µs. Copies and pickles of it are empty."""

    def __reduce__(self) -> Any:
        return (Held, ())

    def get_weight(self, name: str, w: Any) -> Any:
        """weight(w), remembered for as long as `w` is the same tensor with the same contents."""
        if w is None or not w.is_cuda or torch.compiler.is_compiling():
            return w
        version = _version(w)
        held = self.get(name)
        if held is None or held[0] is not w or held[1] != version:
            held = self[name] = (w, version, tree(w) if name == "tree" else weight(w))
        return held[2]
