"""torch tensors that say they are on cuda:0 and lie in the host's memory, for a torch without CUDA: fastffn's operators reach their CUDA
kernels through torch's own dispatcher, and these the emulated plugin.

A tensor in disguise wraps one on the CPU; torch's own operators run on that one. What makes tensors on "cuda:0" or copies them there
needs the mode `Disguise`, which stands for the device. It shows nothing about streams, graphs or torch's allocator.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from cuda_support import BF16, DeviceArray

_CUDA_KERNEL = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)


def host_values(t: Any) -> np.ndarray:
    """The NumPy array of a CPU tensor's memory; bf16 as that of ml_dtypes."""
    t = t.detach()
    return t.view(torch.int16).numpy().view(BF16) if t.dtype == torch.bfloat16 else t.numpy()


class Disguised(torch.Tensor):
    """A tensor on "cuda:0"."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: Any) -> Any:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype, device="cuda:0",
            requires_grad=inner.requires_grad,
        )  # fmt: skip
        made.inner = inner.detach()
        return made

    def __repr__(self) -> str:
        return f"Disguised({self.inner!r})"

    def __dlpack_device__(self) -> Any:
        return (2, 0)

    def __dlpack__(
        self, *, stream: Any = None, max_version: Any = None, dl_device: Any = None, copy: Any = None
    ) -> Any:
        assert stream == -1 or stream >= 1
        return DeviceArray.over(host_values(self.inner)).__dlpack__(stream=stream)

    def copy_(self, source: Any, non_blocking: bool = False) -> Any:
        self.inner.copy_(_bare(source))
        torch.autograd.graph.increment_version(self)
        return self

    def contiguous(self, **_: Any) -> Any:
        return Disguised(self.inner.contiguous())

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (Disguised, (self.inner,))

    def __deepcopy__(self, memo: Any) -> Any:
        return Disguised(self.inner.clone())

    @classmethod
    def __torch_dispatch__(cls, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: Any) -> Any:
    if function.namespace == "fastffn":
        on_device = any(isinstance(t, Disguised) for t in tree_leaves((args, kwargs)))
        if not on_device:
            return function(*args, **kwargs)
        with Disguise():
            return function.redispatch(_CUDA_KERNEL, *args, **kwargs)
    to_device = any(isinstance(t, Disguised) for t in tree_leaves((args, kwargs)))
    inner_args, inner_kwargs = tree_map(_bare, args), tree_map(_bare, kwargs)
    if kwargs.get("device") is not None:
        to_device = torch.device(kwargs["device"]).type == "cuda"
        inner_kwargs["device"] = torch.device("cpu")
    made = function(*inner_args, **inner_kwargs)
    if function is torch.ops.aten._to_copy.default and to_device:
        made = _aligned(made)
    if function._schema.name.endswith("_") or "out" in kwargs:  # in place: the wrapper itself
        return args[0] if args else made
    return tree_map(lambda t: Disguised(t) if isinstance(t, torch.Tensor) and to_device else t, made)


def _aligned(t: Any) -> Any:
    """A copy that begins at a multiple of 256 bytes, as torch's memory on a device does."""
    if not t.is_contiguous():
        return t.clone()
    memory = torch.empty(t.numel() * t.element_size() + 256, dtype=torch.uint8)
    copied = memory[-memory.data_ptr() % 256 :][: t.numel() * t.element_size()].view(t.dtype).view(t.shape)
    return copied.copy_(t)


def _bare(t: Any) -> Any:
    return t.inner if isinstance(t, Disguised) else t


class Disguise(TorchDispatchMode):
    """The device: factories and copies with device="cuda:0" make tensors in disguise."""

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})


def install(monkeypatch: Any) -> None:
    """What torch asks of a device outside its dispatcher."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: types.SimpleNamespace(cuda_stream=0))
    from fastffn.torch import _functions

    plain = _functions._is_plain  # to which a tensor with __torch_dispatch__ is none, for lack of memory
    monkeypatch.setattr(_functions, "_is_plain", lambda t: isinstance(t, Disguised) or plain(t))
    monkeypatch.setattr(torch.__future__, "_overwrite_module_params_on_conversion", True)
