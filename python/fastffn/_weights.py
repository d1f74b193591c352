"""Packed weights: make, read and check them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from fastffn import _core

Array = TypeVar("Array")

# What arrays and frameworks call the dtypes, beside our own names.
_DTYPE_NAMES = {"float32": "f32", "float16": "f16", "half": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True)
class PackedInfo:
    """What packed weights hold.

    Attributes:
        format: name of the format, such as "bf16"; see :func:`formats`.
        out_features: rows of the weight as ``torch.nn.Linear`` holds it.
        in_features: its columns, the dimension that a product sums over.
        count: matrices in the stack; 1 unless it was packed from [count, out_features, in_features].
        nbytes: bytes in all: a header of 64, and the weights with their padding.
        options: what :func:`pack` was told by keyword, and the defaults of what it was not; {} for formats without any.
            For "lowrank" the rank too.
    """

    format: str
    out_features: int
    in_features: int
    count: int
    nbytes: int
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weights that were packed: two dimensions, or three for a stack."""
        matrix = (self.out_features, self.in_features)
        return matrix if self.count == 1 else (self.count, *matrix)

    @property
    def bits_per_weight(self) -> float:
        """Bits that a weight takes, scales, padding and header included."""
        return 8 * self.nbytes / (self.count * self.out_features * self.in_features)


def formats() -> tuple[str, ...]:
    """Names of the formats that a weight can be packed in: all but "lowrank", which takes a pair of factors."""
    return _core.formats()


def activations() -> tuple[str, ...]:
    """Names of the activations that :func:`fastffn.ffn` takes."""
    return _core.activations()


def pack(w: Array | tuple[Array, Any], format: str, *, device: Any = None, **options: Any) -> Any:
    """Weights in the order and format that the kernels read.

    Args:
        w: [out_features, in_features] as ``torch.nn.Linear.weight``, or a stack [count, out_features, in_features];
            f32, f16, bf16 or f64, any strides. A Parameter that requires grad is fine: the result is data.
        format: one of :func:`formats`. "int8" is symmetric with one scale per output row, and :func:`fastffn.ffn`
            quantises the activations per token.
            "lowrank" takes a pair of factors for w: (u, v), u [rank, in_features], v [out_features, rank], in the order
            in which they are applied: w ≈ v @ u, as :func:`fastffn.factorize` returns them.
        device: a CUDA device for the packed weights; the default is where w is. "cuda" and "cuda:1" (for torch, cupy or jax, which
            of them is imported), a device of torch, cupy, jax or ``cuda.core``, or an array that lies there. Packing itself runs on
            the CPU. An option without kernels there is refused by name. python/examples/on_a_gpu.py is a tour; :func:`to_device`
            moves what is packed already.
        **options: what the format lets you choose; None means its default. Formats without options take none.
            "sparse24" (two of every four consecutive weights of a row may be nonzero) has values="bf16" (the default),
            "f16", "f32" or "int8": how the kept weights are stored, and with them the numbers that are multiplied.
            Where a weight is not kept, x is not multiplied: NaN or infinity there reaches no sum (with int8 values it
            makes the token's row NaN, as with "int8"). A group with fewer than two nonzero weights keeps zeros, at its last
            places.
            "ternary" (weights -1, 0 and 1 times a scale, 2 bits each, as BitNet b1.58 trains them, arXiv:2402.17764) has
            scale="tensor" (max(mean |w|, 1e-5) of the matrix; the default) or "row", or, for w that holds the codes -1, 0
            and 1 themselves, an f32 array: one scale, one per matrix, or one per row and group; group=0 (none), 32, 64, 128
            or 256 weights of a row that share an f16 scale; act="int8" (tokens quantised to max|x| / 127) or "int4"
            (BitNet a4.8, arXiv:2411.04965: mean|x| / √7, codes -8 to 7).
            "int4" has group=128 (or 32, 64, 256) weights of a row that share an f16 scale, max |w| / 7; zero_points=True
            for scales (max - min) / 15 and a zero point per group; act as "ternary", or "bf16" (activations rounded to bf16
            and not scaled, sums in f32). For w that holds codes 0 to 15 there
            are scales= (f32, one per row and group) and zeros= (w ≈ scale · (code - zero); 8 where left out) or minima=
            (w ≈ scale · code + minimum). Codes may be int8 or uint8 arrays. Both have order="panels" (the default), "rows" (a
            row's codes lie together: for w_up of layers that skip neurons, see gate_first of :func:`fastffn.ffn`) or
            "columns" (activations that are zero once quantised are skipped, and their columns of w not read: for w_down of
            such layers); numbers are the same in all three. But for act="bf16" activations are integers, whose sums are
            exact: the results have the same bits on every instruction set. A token with NaN or infinity has outputs of NaN
            then; with act="bf16", which knows no other order, of NaN or infinity. No other token's are touched.
            "ternary" and "int4" also have hadamard="none" (the default), "pow2", "kron" or "block" (with block=, a power of two):
            :func:`fastffn.hadamard` of the activations before they are quantised, which keeps outliers from deciding the
            scale (H-BitLinear, arXiv:2504.18415). w is rotated by the same H before it becomes codes, so that
            linear(x, packed) ≈ x · wᵀ as without it, and unpack() turns it back; rotated=True says that w (as H-BitLinear trains
            it) or the given codes are in that basis already. in_features up to 32768.
            "lowrank" has factors="bf16" (the default), "f16", "f32" or "int8": the format of u and v.

    Returns:
        A contiguous one-dimensional uint8 array of w's kind: a header of 64 bytes and the weights. One layout serves
        every instruction set, so it may be saved and loaded on another machine. On a CUDA device: a
        :class:`fastffn.DeviceWeight`, whose array holds such bytes in the order that GPUs read.

    Raises:
        ValueError: an unknown format; options that it does not have or values they do not take; a shape or dtype that
            does not fit; finite weights beyond the range of the format; for int8, ternary and int4, NaN or infinite weights; for sparse24,
            more than two nonzero weights in a group.
        TypeError: w is no array.
        BufferError: w cannot be read where it is.
    """
    if (target := _device_of(w, device)) is not None:
        from fastffn._device import pack_on_device

        return pack_on_device(w, format, options, target)
    if format == "lowrank":
        return pack_pair(w, **options)
    if isinstance(w, tuple):
        raise TypeError(f"pack: w is a tuple, expected an array; only 'lowrank' packs pairs of factors, not '{format}'")
    return _core.pack(w, format, options)


def _device_of(w: Any, device: Any) -> Any:
    """The CUDA device that packed weights are for, or an array that lies there; None for the CPU."""
    if device is not None:
        return None if str(device).partition(":")[0] == "cpu" else device
    # NumPy's arrays are asked nothing: packing them is what most calls do.
    if type(w).__module__ == "numpy":
        return None
    from fastffn._copies import is_on_device

    first = w[0] if isinstance(w, (tuple, list)) and w else getattr(w, "u", w)
    return first if is_on_device(first) else None


def pack_pair(w: Any, factors: str | None = None, **unknown: Any) -> Any:
    """A pair of factors (u, v) as "lowrank", for the CPU."""
    if unknown:
        raise ValueError(f"pack: format 'lowrank' has no option {', '.join(unknown)}; it has factors")
    pair = tuple(w) if isinstance(w, (tuple, list)) or (hasattr(w, "u") and hasattr(w, "v")) else ()
    if len(pair) != 2:
        raise TypeError(
            "pack: format 'lowrank' packs a pair of factors, expected w = (u, v) with u [rank, in_features] and "
            "v [out_features, rank]; fastffn.factorize makes them of a weight"
        )
    return _core.pack_factors(pair[0], pair[1], "bf16" if factors is None else factors)


def unpack(packed: Array, dtype: Any = "f32") -> Array:
    """The weights that ``packed`` holds, dequantised.

    Args:
        packed: packed weights of any kind of array, or a :class:`fastffn.DeviceWeight`, whose bytes are copied to the host for it.
        dtype: "f32", "f16" or "bf16", or a NumPy or torch dtype of these. (NumPy's bf16 is that of ml_dtypes.)

    Returns:
        [out_features, in_features], or [count, out_features, in_features] of a stack; the kind of ``packed``, on its device.

    Raises:
        ValueError: damaged, truncated or foreign bytes (the checksum of all of them is compared); an unknown dtype.
        RuntimeError: bf16 for NumPy without ml_dtypes.
    """
    name = dtype if isinstance(dtype, str) else getattr(dtype, "name", None) or getattr(dtype, "__name__", str(dtype))
    name = str(name).removeprefix("torch.")
    name = _DTYPE_NAMES.get(name, name)
    if isinstance(packed, _core.DeviceWeight):
        from fastffn._device import unpack_to_device

        return unpack_to_device(packed, name)  # type: ignore[no-any-return]
    return _core.unpack(packed, name)


class PackedCodes(NamedTuple):
    """Codes of a weight and what makes numbers of them; see :func:`unpack_codes`.

    Attributes:
        codes: [out_features, in_features]: int8 of "ternary" and "int8", uint8 of "int4".
        scales: [out_features, groups] f32.
        zeros: [out_features, groups] f32, w = scale · (code - zero); None for none (with "int4" zero is then 8).
        minima: [out_features, groups] f32, w = scale · code + minimum; None for none.
        group: weights of a row that share a scale: in_features where a row has one.
    """

    codes: Any
    scales: Any
    zeros: Any
    minima: Any
    group: int


def unpack_codes(packed: Any) -> PackedCodes:
    """The codes of "ternary", "int4" or "int8" weights as they are stored, with their scales: nothing is rounded.

    :func:`pack` takes them back: ``pack(codes, "ternary", scale=scales, group=…)`` and ``pack(codes, "int4", group=…,
    scales=scales, zeros=zeros, minima=minima)`` store the same codes and scales again.

    Args:
        packed: packed weights of any kind of array; of a stack, all results have a first dimension more. Weights that were
            packed with a Hadamard transform hold codes of the transformed weights.

    Returns:
        A :class:`PackedCodes` with arrays of ``packed``'s kind; those of a :class:`fastffn.DeviceWeight` are on the CPU.

    Raises:
        ValueError: another format; damaged, truncated or foreign bytes.
    """
    if isinstance(packed, _core.DeviceWeight):
        from fastffn._device import to_cpu

        packed = to_cpu(packed)
    return PackedCodes(*_core.unpack_codes(packed))


def info(packed: Any) -> PackedInfo:
    """What ``packed`` holds, from its header alone.

    Raises:
        ValueError: bytes that are no packed weights of this version, a damaged header, or a size that does not fit it.
    """
    return PackedInfo(*_core.inspect(packed))


def verify(packed: Any) -> None:
    """Reads every byte of ``packed`` and compares the checksum that :func:`pack` wrote.

    Calls check the header only: verify what comes from disk or the network once, after loading. The checksum finds
    damage; it is no defence against forgery. The bytes of a :class:`fastffn.DeviceWeight` are copied to the host for it.

    Raises:
        ValueError: as :func:`info`, or weights whose checksum differs.
    """
    if isinstance(packed, _core.DeviceWeight):
        return _core.verify_device_bytes(packed.copy_to_host())
    _core.verify(packed)
