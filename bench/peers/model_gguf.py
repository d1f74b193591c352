"""A GGUF file again in another type: the same weights for llama.cpp as for the other contenders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}


def write_gguf(source: Path, target: Path, kind: str) -> Path:
    """Copies every key of the file and its matrices as `kind`, rounded to bf16 first; vectors stay f32."""
    import gguf

    reader = gguf.GGUFReader(str(source))
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(target), architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kinds = field.types
        sub = kinds[-1] if kinds[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kinds[0], sub)
    chosen = getattr(gguf.GGMLQuantizationType, TYPES[kind])
    for tensor in reader.tensors:
        values = np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)
        if values.ndim == 1:
            writer.add_tensor(tensor.name, values)
            continue
        writer.add_tensor(tensor.name, gguf.quants.quantize(_as_bf16(values), chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _as_bf16(values: Any) -> Any:
    """f32 with the numbers that torch's bf16 copy of the weights has: rounded to nearest, ties to even."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)
