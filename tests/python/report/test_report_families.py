"""Every family of models against transformers' own: tiny and random, whole where it is installed, else logits it gave.

``python tests/python/report/test_report_families.py`` writes those logits anew.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_files import VOCABULARY, f32_tensors, gguf_bytes, safetensors_bytes, write_byte_tokenizer

from fastffn.report.arrays import F32
from fastffn.report.errors import FileFormatError
from fastffn.report.ffn_only import FeedForwardModel
from fastffn.report.layers import numpy_ffn
from fastffn.report.open_model import EmbeddingModel, LanguageModel, open_model

COMMON = {
    "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": 0,
}  # fmt: skip
ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 500.0,
        "original_max_position_embeddings": 16,
    },
    "longrope": {
        "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [2.0, 3.0, 4.0], "rope_theta": 500.0,
        "original_max_position_embeddings": 32, "partial_rotary_factor": 0.75,
    },
}  # fmt: skip
# name: (class's beginning, configuration of its own)
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True}),
    "llama, linear": ("Llama", {"rope_parameters": ROPES["linear"]}),
    "llama, llama3": ("Llama", {"rope_parameters": ROPES["llama3"], "tie_word_embeddings": True}),
    "llama, yarn": ("Llama", {"rope_parameters": ROPES["yarn"]}),
    "mistral": ("Mistral", {"sliding_window": 5}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {"query_pre_attn_scalar": 11, "sliding_window": 4, "attn_logit_softcapping": 2.0,
                          "final_logit_softcapping": 3.0}),
    "gemma3, six": ("Gemma3", {"query_pre_attn_scalar": 11, "sliding_window": 4}),
    "gemma3": ("Gemma3", {"query_pre_attn_scalar": 11, "sliding_window": 4, "_sliding_window_pattern": 2}),
    "phi3": ("Phi3", {}),
    "phi3, longrope": ("Phi3", {"rope_parameters": ROPES["longrope"], "original_max_position_embeddings": 32}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "granite": ("Granite", {"embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5,
                            "logits_scaling": 2.0}),
    "olmo2": ("Olmo2", {}),
}  # fmt: skip
TOKENS = np.array([[5, 200, 31, 31, 255, 0, 77, 12, 99, 3], [9, 8, 7, 6, 5, 4, 3, 250, 251, 2]], np.int64)


DATA = Path(__file__).parents[2] / "data" / "report_families.json"


def weight(name: str, shape: Sequence[int]) -> F32:
    """A random tensor that depends on its name alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape)
    near_one = len(shape) == 1 and name.endswith("norm.weight")
    return (0.3 * values + near_one if len(shape) == 1 else 1.5 * shape[-1] ** -0.5 * values).astype(np.float32)


def save(folder: Path, config: dict[str, Any], shapes: dict[str, Sequence[int]]) -> dict[str, F32]:
    """A model's folder as Hugging Face has it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: weight(name, shape) for name, shape in shapes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    write_byte_tokenizer(folder)
    return tensors


def logits_of(path: Path) -> F32:
    opened = open_model(path)
    assert isinstance(opened, LanguageModel), opened.statement  # type: ignore[union-attr]
    return np.stack([opened.model.logits(chunk) for chunk in opened.model.hidden(TOKENS)])


def agree(found: F32, expected: F32) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5 * np.abs(expected).max())


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """Per family: its configuration, its tensors' shapes, and some logits that transformers gave (see `main`)."""
    return json.loads(DATA.read_text())


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_gives_the_logits_of_transformers(name: str, tmp_path: Path, known: dict[str, Any]) -> None:
    entry = known[name]
    save(tmp_path, entry["config"], entry["shapes"])
    agree(logits_of(tmp_path)[:, -1, ::20], np.array(entry["logits"]))


GGUF_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "self_attn.qkv_proj": "attn_qkv",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.gate_up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


def as_gguf(path: Path, arch: str, tensors: dict[str, F32], keys: dict[str, tuple[int, Any]]) -> Path:
    """The same model as llama.cpp's converter writes it."""
    renamed: dict[str, F32] = {}
    for name, array in tensors.items():
        stem, _, kind = name.removeprefix("model.").rpartition(".")
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        if stem.startswith("layers."):
            _, layer, inner = stem.split(".", 2)
            second = "post_attention_norm" if arch in ("gemma2", "gemma3", "olmo2") else "ffn_norm"
            renamed[f"blk.{layer}.{GGUF_NAMES.get(inner, second)}.{kind}"] = array
        else:
            renamed[{"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[stem] + "." + kind] = (
                array
            )
    metadata = {
        "general.architecture": (8, arch), f"{arch}.block_count": (4, 3), f"{arch}.embedding_length": (4, 32),
        f"{arch}.feed_forward_length": (4, 48), f"{arch}.attention.head_count": (4, 4),
        f"{arch}.attention.head_count_kv": (4, 2), f"{arch}.attention.key_length": (4, 8),
        f"{arch}.attention.layer_norm_rms_epsilon": (6, 1e-6), f"{arch}.context_length": (4, 64),
        "tokenizer.ggml.model": (8, "gpt2"), "tokenizer.ggml.pre": (8, "qwen2"),
        "tokenizer.ggml.tokens": (9, (8, VOCABULARY)), "tokenizer.ggml.merges": (9, (8, [])),
        **{f"{arch}.{key}": value for key, value in keys.items()},
    }  # fmt: skip
    path.write_bytes(gguf_bytes(metadata, f32_tensors(renamed)))
    return path


GGUF: dict[str, tuple[str, dict[str, tuple[int, Any]]]] = {
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"attention.sliding_window": (4, 4), "attn_logit_softcapping": (6, 2.0),
                          "final_logit_softcapping": (6, 3.0), "attention.scale": (6, 11**-0.5)}),
    "gemma3, six": ("gemma3", {"attention.sliding_window": (4, 4), "rope.freq_base": (6, 1e6),
                               "attention.scale": (6, 11**-0.5)}),
    "phi3": ("phi3", {"attention.layer_norm_rms_epsilon": (6, 1e-5)}),
    "olmo2": ("olmo2", {"attention.layer_norm_rms_epsilon": (6, 1e-5)}),
}  # fmt: skip


@pytest.mark.parametrize("name", GGUF)
def test_gguf_of_every_family(name: str, tmp_path: Path, known: dict[str, Any]) -> None:
    entry, (arch, keys) = known[name], GGUF[name]
    tensors = save(tmp_path / "hf", entry["config"], entry["shapes"])
    if name == "qwen2":  # llama.cpp knows no windows there
        (tmp_path / "hf" / "config.json").write_text(json.dumps({**entry["config"], "layer_types": []}))
    expected = logits_of(tmp_path / "hf")
    agree(logits_of(as_gguf(tmp_path / "m.gguf", arch, tensors, keys)), expected)


def random_model(kind: str, config: Any) -> Any:
    """A model of transformers with the weights above."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", minversion="5.0")
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weight(name, tuple(parameter.shape))))
    return model


def config_of(begin: str, own: dict[str, Any]) -> Any:
    transformers = pytest.importorskip("transformers", minversion="5.0")
    return getattr(transformers, begin + ("TextConfig" if begin == "Gemma3" else "Config"))(**{**COMMON, **own})


def decoder(name: str) -> Any:
    begin, own = DECODERS[name]
    return random_model(begin + "ForCausalLM", config_of(begin, own))


def reference_logits(model: Any) -> F32:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.from_numpy(TOKENS)).logits.numpy()


@pytest.mark.parametrize("name", DECODERS)
def test_decoder_against_transformers(name: str, tmp_path: Path) -> None:
    model = decoder(name)
    model.save_pretrained(tmp_path)
    write_byte_tokenizer(tmp_path)
    agree(logits_of(tmp_path), reference_logits(model))


@pytest.mark.parametrize("name", ["phi3", "gemma2"])
def test_sharded_and_half_precision(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    model = decoder(name)
    model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    write_byte_tokenizer(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    agree(logits_of(tmp_path), reference_logits(type(model).from_pretrained(tmp_path, dtype=torch.float32)))
    (sorted((tmp_path).glob("*.safetensors"))[0]).unlink()
    with pytest.raises(FileFormatError, match="cannot be opened: No such file"):
        open_model(tmp_path)


ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", {"pad_token_id": 1, "type_vocab_size": 1}),
    "distilbert": ("DistilBert", {"dim": 32, "hidden_dim": 48, "n_layers": 3, "n_heads": 4}),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_against_transformers(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    begin, own = ENCODERS[name]
    config = config_of(begin, own)
    model = random_model(begin + "Model", config)
    model.save_pretrained(tmp_path)
    write_byte_tokenizer(tmp_path, first="<begin>", last="<end>")
    opened = open_model(tmp_path)
    assert isinstance(opened, EmbeddingModel), opened.statement  # type: ignore[union-attr]
    assert opened.tokenizer.encode("ab")[0] == 257 and opened.tokenizer.encode("ab" * 300)[-1] == 256
    sentences = [[5, 200, 31, 31, 255, 7], [9, 8, 7]]
    found = opened.model.embed(sentences)
    for row, sentence in zip(found, sentences, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([sentence])).last_hidden_state[0].numpy()
        mean = states.mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=3e-6)
    with pytest.raises(ValueError, match="sentence lengths"):
        opened.model.embed([[2] * 65])


# Models that are not run whole: (class's beginning, configuration, path to the first layer's FFN, gated)
OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48}, "transformer.h.0.mlp"),
    "gpt_neox": ("GPTNeoX", {}, "gpt_neox.layers.0.mlp"),
    "phi": ("Phi", {"hidden_act": "gelu_new"}, "model.layers.0.mlp"),
    "opt": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32, "activation_function": "relu"}, ""),
    "starcoder2": ("Starcoder2", {}, "model.layers.0.mlp"),
    "cohere": ("Cohere", {}, "model.layers.0.mlp"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_feed_forward_layers_of_others(name: str, tmp_path: Path) -> None:
    begin, own, path = OTHERS[name]
    config = config_of(begin, own)
    model = random_model("GPT2LMHeadModel" if name == "gpt2" else begin + "ForCausalLM", config)
    model.save_pretrained(tmp_path)
    opened = open_model(tmp_path)
    assert isinstance(opened, FeedForwardModel)
    assert opened.layers in (2, 3) and name in opened.statement and "embeddings of random tokens" in opened.statement
    layer = opened.ffn_layer(0)
    assert (layer.d_model, layer.d_ff) == (32, 48)
    x = opened.inputs(0)[:5]
    if path:
        torch = pytest.importorskip("torch")
        with torch.no_grad():
            expected = model.get_submodule(path)(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(numpy_ffn(layer, x), expected, atol=1e-5 * np.abs(expected).max())


def test_sentence_piece_tokenizer_against_tokenizers(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    from fastffn.report.calibration import calibration_text
    from fastffn.report.pieces import PieceTokenizer
    from fastffn.report.run import shipped_text

    for scheme in ("llama", "metaspace", "gemma"):
        found = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
        if scheme == "llama":
            parts = [tokenizers.normalizers.Prepend("\u2581"), tokenizers.normalizers.Replace(" ", "\u2581")]
            found.normalizer = tokenizers.normalizers.Sequence(parts)
        elif scheme == "gemma":
            found.normalizer = tokenizers.normalizers.Replace(" ", "\u2581")
            found.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_previous")
        else:
            found.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        special = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, special_tokens=special)
        words = tokenizers.pre_tokenizers.Metaspace()
        before, found.pre_tokenizer = found.pre_tokenizer, words
        found.train_from_iterator(calibration_text().split("\n"), trainer)
        found.pre_tokenizer = before if before is not None else found.pre_tokenizer
        found.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
        data = json.loads(found.to_str())
        if scheme == "llama":
            data["pre_tokenizer"] = None
        if scheme == "gemma":  # it has tokens of several line breaks
            vocabulary = data["model"]["vocab"]
            for token in ("\n", "\n\n"):
                vocabulary.setdefault(token, len(vocabulary))
            data["model"]["merges"].append(["\n", "\n"])
        path = tmp_path / f"{scheme}.json"
        path.write_text(json.dumps(data))
        reference = tokenizers.Tokenizer.from_str(json.dumps(data))
        ours = PieceTokenizer.from_json(path)
        for text in (shipped_text(), "a  b\u00e9 \U0001f600 x\n\ny\n\n\nz\n", "Hello world"):
            assert ours.encode(text) == reference.encode(text).ids, scheme


def main() -> None:
    """Asks transformers for what `known` reads."""
    out = {}
    for name in DECODERS:
        model = decoder(name)
        shapes = {key: list(value.shape) for key, value in model.named_parameters()}
        logits = reference_logits(model)[:, -1, ::20].round(6).tolist()
        out[name] = {"config": json.loads(model.config.to_json_string()), "shapes": shapes, "logits": logits}
    DATA.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in out.items()) + "\n}\n")


if __name__ == "__main__":
    main()
