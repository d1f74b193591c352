"""Weights on CUDA devices: packed on the CPU, copied by the framework whose arrays they become."""

from __future__ import annotations

from typing import Any

from fastffn import _core


def device_weight(packed: Any, stream: Any = None) -> _core.DeviceWeight:
    """Makes bytes that lie on a CUDA device usable as a weight: those of ``DeviceWeight.array``, loaded again.

    Reads the 64 bytes of the header, for which it waits for the device: call it once, at load.

    Args:
        packed: a one-dimensional contiguous uint8 array on a CUDA device, of any framework.
        stream: an int or an object with ``__cuda_stream__``; by default the stream that the framework works on.

    Raises:
        ValueError: an array elsewhere or of another kind; bytes that are no weights packed for devices.
        RuntimeError: CUDA is unavailable, with the reason.
    """
    return _core.device_weight(packed, stream)


def pack_on_device(w: Any, format: str, options: dict[str, Any], device: Any) -> _core.DeviceWeight:
    """Packs for ``device`` and copies the bytes there; see :func:`fastffn.pack`."""
    if format == "lowrank" or isinstance(w, tuple):
        raise ValueError("pack: format 'lowrank' has no layout for CUDA devices yet; expected f32, f16 or bf16")
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(
            f"pack: device={str(device)!r} needs torch, which copies the packed bytes there; with another framework copy "
            "those of fastffn._core.pack_for_device there yourself and call fastffn.device_weight"
        ) from error
    if isinstance(w, torch.Tensor):
        w = w.detach().cpu()
    host = _core.pack_for_device(w, format, options)
    bytes_on_host = host if isinstance(host, torch.Tensor) else torch.as_tensor(host)
    array = bytes_on_host.to(device)
    if array.device.type != "cuda":
        raise ValueError(f"pack: device is {str(device)!r}, expected the CPU or a CUDA device")
    return _core.device_weight(array, None, bytes(bytes_on_host[:64].numpy()))
