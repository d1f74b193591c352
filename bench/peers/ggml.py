"""Matrix products of ggml (llama.cpp) through ctypes: one product per graph, in the process that runs the others too.

The libraries come from a build of ggml alone (README.md says how) or from an installed llama-cpp-python.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from layer import Skip

F32 = 0
TYPES = {"Q4_0": 2, "Q8_0": 8, "TQ1_0": 34, "TQ2_0": 35}
# Bytes per weight.
SIZES = {"Q4_0": 18 / 32, "Q8_0": 34 / 32, "TQ1_0": 54 / 256, "TQ2_0": 66 / 256}

_folder: str | None = None


def use(folder: str | None) -> None:
    """Where libggml*.so lie; None: FASTFFN_GGML, else llama-cpp-python."""
    global _folder
    _folder = folder


class _InitParams(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class _Plan(ctypes.Structure):
    _fields_ = [
        ("work_size", ctypes.c_size_t),
        ("work_data", ctypes.c_void_p),
        ("n_threads", ctypes.c_int),
        ("threadpool", ctypes.c_void_p),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("use_ref", ctypes.c_bool),
        ("_room", ctypes.c_uint8 * 64),  # for fields of newer versions: the struct is returned through memory anyway
    ]


_POINTER, _INT, _LONG, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_size_t
# Function → result and arguments. In libggml-base but for the last ones.
_BASE = {
    "ggml_init": (_POINTER, [_InitParams]),
    "ggml_free": (None, [_POINTER]),
    "ggml_new_tensor_2d": (_POINTER, [_POINTER, _INT, _LONG, _LONG]),
    "ggml_mul_mat": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "ggml_new_graph": (_POINTER, [_POINTER]),
    "ggml_build_forward_expand": (None, [_POINTER, _POINTER]),
    "ggml_get_data": (_POINTER, [_POINTER]),
    "ggml_row_size": (_SIZE, [_INT, _LONG]),
    "ggml_quantize_chunk": (_SIZE, [_INT, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER]),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_POINTER, [_POINTER, _POINTER]),
    "ggml_backend_buffer_free": (None, [_POINTER]),
    "ggml_backend_tensor_set": (None, [_POINTER, _POINTER, _SIZE, _SIZE]),
    "ggml_backend_reg_dev_get": (_POINTER, [_POINTER, _SIZE]),
    "ggml_backend_reg_get_proc_address": (_POINTER, [_POINTER, ctypes.c_char_p]),
    "ggml_backend_buft_name": (ctypes.c_char_p, [_POINTER]),
    "ggml_backend_dev_buffer_type": (_POINTER, [_POINTER]),
}
_CPU = {
    "ggml_cpu_init": (None, []),
    "ggml_graph_plan": (_Plan, [_POINTER, _INT, _POINTER]),
    "ggml_graph_compute": (_INT, [_POINTER, ctypes.POINTER(_Plan)]),
    "ggml_backend_cpu_reg": (_POINTER, []),
}


def _candidates() -> list[Path]:
    given = _folder or os.environ.get("FASTFFN_GGML")
    if given:
        return [Path(given), Path(given) / "src"]
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or not spec.submodule_search_locations:
        return []
    return [Path(spec.submodule_search_locations[0]) / "lib"]


@functools.cache
def library() -> dict[str, Callable]:
    """The functions by name."""
    for folder in _candidates():
        base, cpu = folder / "libggml-base.so", folder / "libggml-cpu.so"
        if not (base.exists() and cpu.exists()):
            continue
        handles = [
            (ctypes.CDLL(str(base), ctypes.RTLD_GLOBAL), _BASE),
            (ctypes.CDLL(str(cpu), ctypes.RTLD_GLOBAL), _CPU),
        ]
        found = {}
        for handle, names in handles:
            for name, (result, arguments) in names.items():
                function = getattr(handle, name)
                function.restype, function.argtypes = result, arguments
                found[name] = function
        found["ggml_cpu_init"]()
        return found
    raise Skip("ggml is not here (README.md says how to build it; --ggml FOLDER or FASTFFN_GGML says where it is)")


def buffers() -> dict[str, int]:
    """Buffer types that weights can be held in, by name: the plain one, and those that order weights for their kernels."""
    ggml = library()
    registry = ggml["ggml_backend_cpu_reg"]()
    device = ggml["ggml_backend_reg_dev_get"](registry, 0)
    kinds = [ggml["ggml_backend_dev_buffer_type"](device)]
    address = ggml["ggml_backend_reg_get_proc_address"](registry, b"ggml_backend_dev_get_extra_bufts")
    if address:
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(_POINTER), _POINTER)(address)(device)
        index = 0
        while listed and listed[index]:
            kinds.append(listed[index])
            index += 1
    return {ggml["ggml_backend_buft_name"](kind).decode(): kind for kind in kinds}


class Weight:
    """One matrix [out, in] in a type and a buffer; `product` makes a call."""

    def __init__(self, kind: str, buffer: str, raw: np.ndarray, rows: int, columns: int) -> None:
        ggml = library()
        kinds = buffers()
        if buffer not in kinds:
            raise Skip(f"this ggml has no buffer {buffer} here; it has {', '.join(kinds)}")
        self.columns, self.rows = columns, rows
        self.context = ggml["ggml_init"](_InitParams(1 << 14, None, True))
        self.tensor = ggml["ggml_new_tensor_2d"](self.context, TYPES[kind], columns, rows)
        self.memory = ggml["ggml_backend_alloc_ctx_tensors_from_buft"](self.context, kinds[buffer])
        if not self.memory:
            raise Skip(f"ggml: no memory for {kind} in {buffer}")
        ggml["ggml_backend_tensor_set"](self.tensor, raw.ctypes.data, 0, raw.nbytes)

    def product(self, x: np.ndarray, threads: int) -> tuple[Callable[[], None], np.ndarray]:
        """A call, and the array [tokens, out] that it writes. Quantising x is part of the call."""
        ggml = library()
        tokens = x.shape[0]
        context = ggml["ggml_init"](_InitParams(4 * x.size + 4 * tokens * self.rows + (1 << 20), None, False))
        source = ggml["ggml_new_tensor_2d"](context, F32, self.columns, tokens)
        result = ggml["ggml_mul_mat"](context, self.tensor, source)
        graph = ggml["ggml_new_graph"](context)
        ggml["ggml_build_forward_expand"](graph, result)
        ctypes.memmove(ggml["ggml_get_data"](source), np.ascontiguousarray(x, np.float32).ctypes.data, 4 * x.size)
        plan = ggml["ggml_graph_plan"](graph, threads, None)
        work = np.empty(plan.work_size + 64, np.uint8)
        plan.work_data = work.ctypes.data
        compute, reference = ggml["ggml_graph_compute"], ctypes.byref(plan)

        def call(_keep: tuple = (work, plan, self)) -> None:
            compute(graph, reference)

        y = np.ctypeslib.as_array(
            ctypes.cast(ggml["ggml_get_data"](result), ctypes.POINTER(ctypes.c_float)), (tokens, self.rows)
        )
        return call, y


def quantise(kind: str, w: np.ndarray) -> np.ndarray:
    """The bytes of weights [out, in] f32, by ggml itself."""
    ggml = library()
    rows, columns = w.shape
    raw = np.empty(rows * ggml["ggml_row_size"](TYPES[kind], columns), np.uint8)
    w = np.ascontiguousarray(w, np.float32)
    ggml["ggml_quantize_chunk"](TYPES[kind], w.ctypes.data, raw.ctypes.data, 0, rows, columns, None)
    return raw
