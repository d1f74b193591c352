"""Trees on CUDA devices: packed on the CPU, copied by the framework whose arrays they become, and brought back."""

from __future__ import annotations

from typing import Any

from fastffn import _copies, _core

TREE_MAGIC = b"ffftree\0"


def device_tree(tree: Any, stream: Any = None) -> _core.DeviceTree:
    """Makes bytes that lie on a CUDA device usable as a tree: those of ``DeviceTree.array``, loaded again.

    Reads the 128 bytes of the header, for which it waits for the device: call it once, at load.

    Args:
        tree: a one-dimensional contiguous array of bytes (uint8, or int8 as ``cuda.core`` buffers say) on a CUDA device, of any
            framework; its memory begins at a multiple of 16 bytes.
        stream: an int or an object with ``__cuda_stream__``; by default the stream that the framework works on.

    Raises:
        ValueError: an array elsewhere or of another kind; bytes that are no tree packed for devices.
        RuntimeError: CUDA is unavailable, with the reason.
    """
    return _core.device_tree(tree, stream)


def is_tree(packed: Any) -> bool:
    """Whether ``packed`` is a packed tree, in the host's memory or on a device."""
    if isinstance(packed, _core.DeviceTree):
        return True
    if isinstance(packed, _core.DeviceWeight) or _copies.is_on_device(packed):
        return False
    import numpy as np

    view = np.asarray(packed)
    return view.dtype == np.uint8 and view.ndim == 1 and bytes(view[:8]) == TREE_MAGIC


def tree_to_device(tree: Any, device: Any, stream: Any = None, operation: str = "to_device") -> _core.DeviceTree:
    """:func:`fastffn.to_device` of a tree."""
    host = tree.copy_to_host() if isinstance(tree, _core.DeviceTree) else tree
    host = host.numpy() if hasattr(host, "numpy") else host
    if not _is_for_devices(host):
        host = _core.tree_to_device_layout(host)
    return _core.device_tree(_copies.to_device(host, device, operation), stream)


def tree_to_cpu(tree: Any) -> Any:
    """:func:`fastffn.to_cpu` of a tree."""
    if not isinstance(tree, _core.DeviceTree):
        return _core.tree_to_cpu_layout(tree)
    restored = _core.tree_to_cpu_layout(tree.copy_to_host())
    if _copies.framework_of(tree.array) != "torch":
        return restored
    import torch

    return torch.from_numpy(restored)


def device_of(array: Any, device: Any) -> Any:
    """Where the result of packing ``array`` goes: None for the CPU, else what :func:`fastffn.to_device` takes."""
    if device is None:
        return array if _copies.is_on_device(array) else None
    if (isinstance(device, str) and device.partition(":")[0] == "cpu") or getattr(device, "type", None) == "cpu":
        return None
    # A name says no framework: that of the array, where it has one that reaches devices.
    if isinstance(device, str) and _copies.framework_of(array) == "torch":
        import torch

        return torch.device(device)
    if isinstance(device, str) and _copies.is_on_device(array) and _copies.number_of(device) is None:
        return array
    return device


def _is_for_devices(host: Any) -> bool:
    import numpy as np

    view = np.asarray(host)
    return view.size >= 128 and int(view[56:60].view(np.uint32)[0]) == 2  # TreeHeader.layout
