"""Weights on CUDA devices: packed on the CPU, copied by the framework whose arrays they become, and brought back."""

from __future__ import annotations

from typing import Any

from fastffn import _copies, _core
from fastffn._device_tree import is_tree, tree_to_cpu, tree_to_device
from fastffn._weights import pack_pair


def device_weight(packed: Any, stream: Any = None) -> _core.DeviceWeight:
    """Makes bytes that lie on a CUDA device usable as a weight: those of ``DeviceWeight.array``, loaded again.

    Reads the 64 bytes of the header, for which it waits for the device: call it once, at load.

    Args:
        packed: a one-dimensional contiguous array of bytes (uint8, or int8 as ``cuda.core`` buffers say) on a CUDA device, of any
            framework.
        stream: an int or an object with ``__cuda_stream__``; by default the stream that the framework works on.

    Raises:
        ValueError: an array elsewhere or of another kind; bytes that are no weights packed for devices.
        RuntimeError: CUDA is unavailable, with the reason.
    """
    return _core.device_weight(packed, stream)


def to_device(packed: Any, device: Any = "cuda", stream: Any = None) -> Any:
    """Packed weights on a CUDA device: the same codes and scales in the order that GPUs read; nothing is rounded.

    Args:
        packed: what :func:`fastffn.pack`, :func:`fastffn.pack_tree` or :func:`to_cpu` made, in the host's memory; bytes that are in the devices' order
            already are copied as they are. A DeviceWeight or DeviceTree goes to the other device.
        device: "cuda", "cuda:1"; a device of torch, cupy, jax or ``cuda.core``; or an array that lies there. The framework that
            says it makes the array; a name is for torch, cupy or jax, which of them is imported.
        stream: as :func:`device_weight`, which this waits for like it.

    Returns:
        A :class:`fastffn.DeviceWeight`; of a tree, a :class:`fastffn.DeviceTree`.

    Raises:
        ValueError: damaged or foreign bytes, no CUDA device.
        RuntimeError: a format without kernels on devices; no framework to copy with; CUDA is unavailable.
    """
    if is_tree(packed):
        return tree_to_device(packed, device, stream)
    host = packed.copy_to_host() if isinstance(packed, _core.DeviceWeight) else _host_bytes(packed, "to_device")
    if not _is_for_devices(host):
        host = _core.to_device_layout(host)
    return _core.device_weight(_copies.to_device(_numpy(host), device, "to_device"), stream)


def to_cpu(packed: Any) -> Any:
    """Packed weights as the CPU reads them, from a device: byte for byte what :func:`fastffn.pack` gives there.

    Args:
        packed: a :class:`fastffn.DeviceWeight` or DeviceTree, for whose device this waits; or its bytes in the host's memory, as a file or
            ``state_dict`` brings them.

    Returns:
        A one-dimensional uint8 array, torch's where the weight is torch's and NumPy's else.

    Raises:
        ValueError: damaged bytes, or some that are not packed for devices.
    """
    if is_tree(packed):
        return tree_to_cpu(packed)
    if not isinstance(packed, _core.DeviceWeight):
        return _core.to_cpu_layout(packed)
    restored = _core.to_cpu_layout(packed.copy_to_host())
    if _copies.framework_of(packed.array) != "torch":
        return restored
    import torch

    return torch.from_numpy(restored)


def unpack_to_device(packed: _core.DeviceWeight, dtype: str) -> Any:
    """:func:`fastffn.unpack` of weights on a device, with the result there."""
    plain = _core.unpack(to_cpu(packed), dtype)
    if _copies.framework_of(packed.array) == "torch":
        return plain.to(packed.array.device)
    return _copies.to_device(plain, packed.array, "unpack")


def pack_on_device(w: Any, format: str, options: dict[str, Any], device: Any) -> _core.DeviceWeight:
    """Packs for ``device`` and copies the bytes there; see :func:`fastffn.pack`."""
    if format == "lowrank":
        pair = tuple(w) if isinstance(w, (tuple, list)) else (w.u, w.v) if hasattr(w, "u") and hasattr(w, "v") else w
        parts = tuple(map(_copies.to_host, pair)) if isinstance(pair, tuple) else pair
        host = _core.to_device_layout(pack_pair(parts, **options))
        w = pair[0] if isinstance(pair, tuple) and pair else w
    else:
        given = {
            name: _copies.to_host(value) if _copies.is_on_device(value) else value for name, value in options.items()
        }
        host = _core.pack_for_device(_copies.to_host(w), format, given)
    # A name says no framework: that of w, where w has one that reaches devices.
    if isinstance(device, str) and _copies.framework_of(w) in ("torch", "cupy", "jax"):
        if _copies.framework_of(w) == "torch":
            import torch

            device = torch.device(device)
        elif _copies.is_on_device(w) and _copies.number_of(device) is None:
            device = w
    return _core.device_weight(_copies.to_device(_numpy(host), device, "pack"))


def _host_bytes(packed: Any, operation: str) -> Any:
    if _copies.is_on_device(packed):
        raise ValueError(
            f"{operation}: packed lies on a device already, expected bytes in the host's memory; fastffn.device_weight makes a weight"
            " of it"
        )
    return packed


def _numpy(host: Any) -> Any:
    return host.numpy() if hasattr(host, "numpy") else host


def _is_for_devices(host: Any) -> bool:
    import numpy as np

    view = host.numpy() if hasattr(host, "numpy") else np.asarray(host)
    return view.dtype == np.uint8 and view.ndim == 1 and view.size > 11 and view[11] == 2  # PackedHeader.layout
