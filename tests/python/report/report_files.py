"""Writers of small model files for the tests: safetensors, GGUF, a Llama in both, a BERT."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fastffn.report.arrays import F32
from fastffn.report.bpe import byte_alphabet

DTYPES = {"<f4": "F32", "<f2": "F16", "<u2": "BF16", "<f8": "F64", "|i1": "I8"}


def safetensors_bytes(
    tensors: dict[str, np.ndarray], padding: int = 0, metadata: dict[str, str] | None = None
) -> bytes:
    """A file holding the tensors (uint16 ones as bf16), its data beginning `padding` bytes later than it must."""
    header: dict[str, Any] = {}
    if metadata is not None:
        header["__metadata__"] = metadata
    data = b""
    for name, array in tensors.items():
        begin = len(data)
        data += array.tobytes()
        header[name] = {
            "dtype": DTYPES[array.dtype.str],
            "shape": list(array.shape),
            "data_offsets": [begin, len(data)],
        }
    encoded = json.dumps(header).encode() + b" " * padding
    return struct.pack("<Q", len(encoded)) + encoded + data


_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def gguf_string(text: str) -> bytes:
    """A length and the text."""
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def gguf_value(kind: int, value: Any) -> bytes:
    """A value of a metadata type; an array is (inner type, values)."""
    if kind == 8:
        return gguf_string(value)
    if kind == 9:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(gguf_value(inner, item) for item in values)
    return struct.pack("<" + _SCALARS[kind], value)


def gguf_bytes(
    metadata: dict[str, tuple[int, Any]],
    tensors: dict[str, tuple[int, tuple[int, ...], bytes]],
    version: int = 3,
    alignment: int = 32,
) -> bytes:
    """A file: key → (type, value), tensor name → (type, shape in NumPy's order, bytes)."""
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for key, (kind, value) in metadata.items():
        out += gguf_string(key) + struct.pack("<I", kind) + gguf_value(kind, value)
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        data += b"\0" * (-len(data) % alignment)
        out += gguf_string(name) + struct.pack("<I", len(shape))
        out += struct.pack(f"<{len(shape)}Q", *reversed(shape)) + struct.pack("<IQ", kind, len(data))
        data += raw
    return out + b"\0" * (-len(out) % alignment) + data


def f32_tensors(weights: dict[str, F32]) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """Arrays as GGUF tensors of type F32."""
    return {name: (0, array.shape, array.tobytes()) for name, array in weights.items()}


# A tiny Llama. 258 tokens: one per byte, an end-of-text and a beginning-of-text token.
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 500.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
}
VOCABULARY = [*byte_alphabet(), "<end>", "<begin>"]


def llama_weights(seed: int = 0, tied: bool = True) -> dict[str, F32]:
    """Random weights under their Hugging Face names."""
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> F32:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    out = {"model.embed_tokens.weight": 3 * matrix(258, 32), "model.norm.weight": 1 + 0.1 * matrix(32)}
    if not tied:
        out["lm_head.weight"] = matrix(258, 32)
    for layer in range(2):
        base = f"model.layers.{layer}."
        out[base + "input_layernorm.weight"] = 1 + 0.1 * matrix(32)
        out[base + "post_attention_layernorm.weight"] = 1 + 0.1 * matrix(32)
        for name, rows in (("q", 32), ("k", 16), ("v", 16), ("o", 32)):
            out[f"{base}self_attn.{name}_proj.weight"] = 2 * matrix(rows, 32)
        out[base + "mlp.gate_proj.weight"] = matrix(48, 32)
        out[base + "mlp.up_proj.weight"] = matrix(48, 32)
        out[base + "mlp.down_proj.weight"] = matrix(32, 48)
    return out


def write_byte_tokenizer(folder: Path, first: str | None = None, last: str | None = None) -> None:
    """A tokenizer.json of one token per byte; with `first` and `last` around every text where they are given."""
    tokenizer: dict[str, Any] = {
        "model": {"type": "BPE", "vocab": {token: i for i, token in enumerate(VOCABULARY[:256])}, "merges": []},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "added_tokens": [{"id": 256, "content": "<end>"}, {"id": 257, "content": "<begin>"}],
    }
    if first is not None:
        ends = [{"SpecialToken": {"id": first}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": last}}]
        tokenizer["post_processor"] = {"type": "TemplateProcessing", "single": ends}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def write_llama_folder(folder: Path, weights: dict[str, F32]) -> Path:
    """config.json, tokenizer.json and model.safetensors; returns the last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(LLAMA))
    write_byte_tokenizer(folder)
    (folder / "model.safetensors").write_bytes(safetensors_bytes({k: v.astype("<f4") for k, v in weights.items()}))
    return folder / "model.safetensors"


_GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def pair_neighbours(weight: F32, heads: int) -> F32:
    """GGUF's order of q and k rows: the two halves of every head interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_llama_gguf(path: Path, weights: dict[str, F32]) -> Path:
    """The same model as GGUF, with q and k rows in GGUF's order."""
    renamed: dict[str, F32] = {}
    for name, array in weights.items():
        parts = name.split(".")
        if name == "model.embed_tokens.weight":
            renamed["token_embd.weight"] = array
        elif name == "model.norm.weight":
            renamed["output_norm.weight"] = array
        elif name == "lm_head.weight":
            renamed["output.weight"] = array
        else:
            kind = ".".join(parts[3:-1])
            if kind == "self_attn.q_proj":
                array = pair_neighbours(array, 4)
            elif kind == "self_attn.k_proj":
                array = pair_neighbours(array, 2)
            renamed[f"blk.{parts[2]}.{_GGUF_NAMES[kind]}.weight"] = array
    metadata: dict[str, tuple[int, Any]] = {
        "general.architecture": (8, "llama"),
        "llama.block_count": (4, 2),
        "llama.embedding_length": (4, 32),
        "llama.feed_forward_length": (4, 48),
        "llama.attention.head_count": (4, 4),
        "llama.attention.head_count_kv": (4, 2),
        "llama.attention.layer_norm_rms_epsilon": (6, 1e-5),
        "llama.rope.freq_base": (6, 500.0),
        "llama.context_length": (4, 64),
        "tokenizer.ggml.model": (8, "gpt2"),
        "tokenizer.ggml.pre": (8, "smollm"),
        "tokenizer.ggml.tokens": (9, (8, VOCABULARY)),
        "tokenizer.ggml.token_type": (9, (5, [1] * 256 + [3, 3])),
        "tokenizer.ggml.merges": (9, (8, [])),
    }
    path.write_bytes(gguf_bytes(metadata, f32_tensors(renamed)))
    return path


BERT = {
    "model_type": "bert",
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 128,
    "hidden_act": "gelu",
}


def bert_weights(seed: int = 0) -> dict[str, F32]:
    """Random weights under their Hugging Face names, with a vocabulary of 60."""
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> F32:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    out: dict[str, F32] = {}
    for name, rows in (("word", 60), ("position", 128), ("token_type", 2)):
        out[f"embeddings.{name}_embeddings.weight"] = 3 * array(rows, 32)

    def norm(name: str) -> None:
        out[name + ".weight"], out[name + ".bias"] = 1 + 0.3 * array(32), 0.3 * array(32)

    def dense(name: str, rows: int, columns: int) -> None:
        out[name + ".weight"], out[name + ".bias"] = array(rows, columns), array(rows)

    norm("embeddings.LayerNorm")
    for layer in range(2):
        base = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            dense(f"{base}attention.self.{name}", 32, 32)
        dense(base + "attention.output.dense", 32, 32)
        norm(base + "attention.output.LayerNorm")
        dense(base + "intermediate.dense", 48, 32)
        dense(base + "output.dense", 32, 48)
        norm(base + "output.LayerNorm")
    return out


def write_bert_folder(folder: Path, weights: dict[str, F32]) -> Path:
    """config.json, vocab.txt and model.safetensors; returns the last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(BERT))
    letters = [chr(ord("a") + i) for i in range(26)]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *("##" + letter for letter in letters), ".", ","]
    vocabulary += ["the", "##ing"]
    assert len(vocabulary) == 60
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (folder / "model.safetensors").write_bytes(safetensors_bytes({k: v.astype("<f4") for k, v in weights.items()}))
    return folder / "model.safetensors"
