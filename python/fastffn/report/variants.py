"""Variants: the rows of the report. Everything that is measured is one `Variant`, and `all_variants` lists them.

To add a method: write a function that returns a `Variant`, and name it in `all_variants`. Weight formats need not even
that, as every name in ``fastffn.formats()`` becomes a row by itself. A variant says four things:

- ``pack(layer)``: an `FfnLayer` → weights in whatever form the method runs from. Not timed.
- ``prepare(x, layer)``: f32 rows [tokens, d_model] → what ``run`` takes (its own kind of array, its output buffer).
  Not timed.
- ``run(packed, prepared)``: the call itself. This is what is timed.
- ``bytes(packed)``: bytes of the weights as they are held in memory.

and ``result(output)`` turns what ``run`` returned into f32 NumPy for the comparison with float64.

A method that must see data before it can pack says so with ``calibrate(calibration, step)``, which runs once per model,
before anything is measured: it walks the model over the calibration text (calibration.py), keeps what it made of each
layer by ``layer.index``, and ``pack`` finds it there. Methods beside weight formats are listed in `METHODS`.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import fastffn as ff

from .arrays import F32, AnyArray
from .calibration import Calibration
from .codes import code_variants
from .errors import ReportError
from .layers import FfnFunction, FfnLayer
from .lowrank import Figure, lowrank_variants
from .sparse24 import sparse24_variants


@dataclass(frozen=True)
class Variant:
    """One way of running a feed-forward layer; see the module's text."""

    name: str
    family: str  # "fastffn", or a peer's name: peers are timed, and compared with, but not run through the whole model
    pack: Callable[[FfnLayer], Any]
    prepare: Callable[[F32, FfnLayer], Any]
    run: Callable[[Any, Any], Any]
    bytes: Callable[[Any], int]
    result: Callable[[Any], F32]
    calibrate: Callable[[Calibration, Callable[[], None]], None] | None = None
    calibration_passes: float = 0.0  # about how many runs of the model `calibrate` takes, for the progress bar
    like: str | None = None  # the row that differs from this one by its weights' values only: timed there, not twice
    active: Callable[[Any], float] | None = None  # packed → the part of the FFN's weights that a token uses; None: all
    note: str | None = None  # what a reader should know; shown once below the tables, whatever the number of rows
    figures: Callable[[], list[Figure]] | None = None  # drawings of its own for the page, once it was calibrated

    @property
    def ours(self) -> bool:
        """Whether this library runs it."""
        return self.family == "fastffn"

    def apply(self, packed: Any, x: F32, layer: FfnLayer) -> F32:
        """The layer's output for rows x [tokens, d_model]."""
        return self.result(self.run(packed, self.prepare(x, layer)))

    def as_ffn(self) -> FfnFunction:
        """This variant for the model runners. Packs each layer when it comes, so one at a time is in memory."""

        def function(index: int, layer: FfnLayer, x: F32) -> F32:
            rows = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
            return self.apply(self.pack(layer), rows, layer).reshape(x.shape)

        return function


@dataclass(frozen=True)
class _PackedFfn:
    """The packed weights of one layer and what else ``fastffn.ffn`` takes, ready to be splatted."""

    w_up: AnyArray
    w_down: AnyArray
    options: dict[str, Any]


def _pack_weights(layer: FfnLayer, packed: Callable[[str], Any]) -> _PackedFfn:
    """A layer of `packed(name)` for each of its weights."""
    options: dict[str, Any] = {"activation": layer.activation}
    if layer.w_gate is not None:
        options["w_gate"] = packed("w_gate")
    for bias in ("b_up", "b_down", "b_gate"):
        if getattr(layer, bias) is not None:
            options[bias] = getattr(layer, bias)
    return _PackedFfn(packed("w_up"), packed("w_down"), options)


def pack_layer(layer: FfnLayer, format: str, **format_options: Any) -> _PackedFfn:
    """All matrices of a layer in one weight format."""
    return _pack_weights(layer, lambda name: ff.pack(getattr(layer, name), format, **format_options))


def format_variant(name: str) -> Variant:
    """All three matrices in one weight format; f32 in and out."""

    def prepare(x: F32, layer: FfnLayer) -> tuple[F32, F32]:
        return x, np.empty((x.shape[0], layer.w_down.shape[0]), np.float32)

    def run(packed: _PackedFfn, prepared: tuple[F32, F32]) -> Any:
        x, out = prepared
        return ff.ffn(x, packed.w_up, packed.w_down, out=out, **packed.options)

    def size(packed: _PackedFfn) -> int:
        gate = packed.options.get("w_gate")
        return int(packed.w_up.nbytes + packed.w_down.nbytes + (0 if gate is None else gate.nbytes))

    def result(output: Any) -> F32:
        return np.asarray(output, np.float32)

    return Variant(name, "fastffn", lambda layer: pack_layer(layer, name), prepare, run, size, result)


def torch_variant(dtype: str) -> Variant:
    """torch eager, as a model on a CPU runs: three F.linear calls and the activation, all in one dtype."""
    torch = _torch()
    functional = torch.nn.functional
    kind = {"f32": torch.float32, "bf16": torch.bfloat16}[dtype]
    activations: dict[str, Callable[[Any], Any]] = {
        "identity": lambda x: x,
        "relu": functional.relu,
        "relu2": lambda x: functional.relu(x).square(),
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "silu": functional.silu,
    }

    def tensor(values: F32 | None) -> Any:
        # A copy: model files are mapped read-only, which torch.from_numpy warns of.
        return None if values is None else torch.from_numpy(np.array(values, np.float32)).to(kind)

    def pack(layer: FfnLayer) -> dict[str, Any]:
        names = ("w_up", "w_down", "w_gate", "b_up", "b_down", "b_gate")
        packed = {name: tensor(getattr(layer, name)) for name in names}
        packed["activation"] = activations[layer.activation]
        return packed

    def run(packed: dict[str, Any], x: Any) -> Any:
        with torch.inference_mode():
            hidden = functional.linear(x, packed["w_up"], packed["b_up"])
            if packed["w_gate"] is None:
                hidden = packed["activation"](hidden)
            else:
                hidden = packed["activation"](functional.linear(x, packed["w_gate"], packed["b_gate"])) * hidden
            return functional.linear(hidden, packed["w_down"], packed["b_down"])

    def size(packed: dict[str, Any]) -> int:
        held = (packed[name] for name in ("w_up", "w_down", "w_gate"))
        return sum(weight.numel() * weight.element_size() for weight in held if weight is not None)

    def prepare(x: F32, layer: FfnLayer) -> Any:
        return tensor(x)

    def result(output: Any) -> F32:
        values: F32 = output.float().numpy()
        return values

    return Variant(f"torch {dtype}", "torch", pack, prepare, run, size, result)


def has_torch() -> bool:
    """Whether torch can be imported; does not import it."""
    return importlib.util.find_spec("torch") is not None


def torch_facts() -> str:
    """Its version and threads."""
    torch = _torch()
    return f"{torch.__version__}, {torch.get_num_threads()} threads"


def _torch() -> Any:
    # By name, so that neither the report nor its type check needs torch.
    return importlib.import_module("torch")


def _sparse24() -> list[Variant]:
    return sparse24_variants(
        lambda layer, values: pack_layer(layer, "sparse24", values=values), format_variant("sparse24")
    )


def _experts() -> list[Variant]:
    from .experts import expert_variants  # it imports this module

    return expert_variants()


def _trees() -> list[Variant]:
    from .trees import tree_variants  # likewise

    return tree_variants()


def _lowrank() -> list[Variant]:
    return lowrank_variants(_pack_weights, format_variant("lowrank"))


def _rows_of(name: str, further: bool) -> list[Variant]:
    """A format that takes any weights, and with `further` its rows with other options."""

    def pack(layer: FfnLayer, options: Callable[[str], dict[str, Any]]) -> _PackedFfn:
        return _pack_weights(layer, lambda weight: ff.pack(getattr(layer, weight), name, **options(weight)))

    return code_variants(name, format_variant(name), pack, further)


# Formats that do not take any weights, and the rows that find some for them.
_OF_FORMAT: dict[str, Callable[[], list[Variant]]] = {"sparse24": _sparse24}

# Methods that are no weight format, by their name for --methods, and their rows.
METHODS: dict[str, Callable[[], list[Variant]]] = {"lowrank": _lowrank, "experts": _experts, "trees": _trees}


def plain_formats() -> tuple[str, ...]:
    """The weight formats that take any weights as they are."""
    return tuple(name for name in ff.formats() if name not in _OF_FORMAT)


def all_variants(
    formats: Sequence[str] | None = None,
    with_torch: bool = True,
    methods: Sequence[str] | None = None,
    further: bool = True,
) -> list[Variant]:
    """Every row of the report. `formats` limits the weight formats; f32 always comes along, as the others' baseline.

    `methods` limits the rows beside them to those names of `METHODS`. `further`: rows of a format with other options, too.
    """
    known = list(ff.formats())
    chosen = known if formats is None else ["f32", *(name for name in formats if name != "f32")]
    for name in chosen:
        if name not in known:
            raise ReportError(f"--formats: {name!r} is unknown; this build has {', '.join(known)}")
    for name in methods or ():
        if name not in METHODS:
            raise ReportError(f"--methods: {name!r} is unknown; there is {', '.join(METHODS)}, all or none")
    rows = [row for name in chosen if name not in _OF_FORMAT for row in _rows_of(name, further)]
    for name in chosen:
        rows += _OF_FORMAT[name]() if name in _OF_FORMAT else []
    for name in METHODS if methods is None else methods:
        rows += METHODS[name]()
    if with_torch and has_torch():
        rows += [torch_variant("f32"), torch_variant("bf16")]
    return rows


def set_threads(count: int | None, with_torch: bool = True) -> int:
    """Sets the threads of fastffn, and of torch where it is in use; returns how many fastffn takes."""
    if count is not None:
        ff.set_num_threads(count)
    threads = int(ff.get_num_threads())
    if with_torch and has_torch():
        _torch().set_num_threads(threads)
    return threads
