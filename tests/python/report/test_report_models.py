"""The model runners on tiny random models, against loops in float64 that share no code with them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from report_files import (
    BERT,
    LLAMA,
    bert_weights,
    f32_tensors,
    gguf_bytes,
    llama_weights,
    safetensors_bytes,
    write_bert_folder,
    write_llama_folder,
    write_llama_gguf,
)

from fastffn.report.arrays import F32, F64
from fastffn.report.bert import BertConfig
from fastffn.report.errors import FileFormatError, ReportError
from fastffn.report.ffn_only import FeedForwardModel
from fastffn.report.layers import FfnLayer, activate, float64_ffn, numpy_ffn
from fastffn.report.llama_config import LlamaConfig
from fastffn.report.open_model import EmbeddingModel, LanguageModel, open_model
from fastffn.report.rope import Rope

TOKENS = np.array([[5, 200, 31, 31, 255, 0, 77], [9, 8, 7, 6, 5, 4, 3]], np.int64)


def wide(weights: dict[str, F32]) -> dict[str, F64]:
    return {name: array.astype(np.float64) for name, array in weights.items()}


def slow_llama_logits(weights: dict[str, F32], tokens: list[int]) -> F64:
    """Logits of one sequence, position by position and head by head."""
    w = wide(weights)

    def norm(x: F64, weight: F64) -> F64:
        return x / math.sqrt(float(np.mean(x * x)) + 1e-5) * weight

    def turn(x: F64, position: int) -> F64:
        out = x.copy()
        for i in range(4):
            angle = position * 500.0 ** (-2 * i / 8)
            out[i] = x[i] * math.cos(angle) - x[i + 4] * math.sin(angle)
            out[i + 4] = x[i + 4] * math.cos(angle) + x[i] * math.sin(angle)
        return out

    stream = [w["model.embed_tokens.weight"][token] for token in tokens]
    for layer in range(2):
        base = f"model.layers.{layer}."
        normed = [norm(x, w[base + "input_layernorm.weight"]) for x in stream]
        q, k, v = ([w[f"{base}self_attn.{name}_proj.weight"] @ x for x in normed] for name in "qkv")
        for position in range(len(tokens)):
            heads = []
            for head in range(4):
                shared = slice(8 * (head // 2), 8 * (head // 2) + 8)
                mine = turn(q[position][8 * head : 8 * head + 8], position)
                scores = [mine @ turn(k[other][shared], other) / math.sqrt(8) for other in range(position + 1)]
                shares = np.exp(np.array(scores) - max(scores))
                heads.append(sum(s * v[other][shared] for other, s in enumerate(shares / shares.sum())))
            stream[position] = stream[position] + w[base + "self_attn.o_proj.weight"] @ np.concatenate(heads)
        for position, x in enumerate(stream):
            normed_x = norm(x, w[base + "post_attention_layernorm.weight"])
            gate = w[base + "mlp.gate_proj.weight"] @ normed_x
            hidden = gate / (1 + np.exp(-gate)) * (w[base + "mlp.up_proj.weight"] @ normed_x)
            stream[position] = x + w[base + "mlp.down_proj.weight"] @ hidden
    head_weight = w.get("lm_head.weight", w["model.embed_tokens.weight"])
    return np.array([head_weight @ norm(x, w["model.norm.weight"]) for x in stream])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_llama_against_loops(tmp_path: Path, kind: str, tied: bool) -> None:
    weights = llama_weights(tied=tied)
    path = write_llama_gguf(tmp_path / "m.gguf", weights) if kind == "gguf" else write_llama_folder(tmp_path, weights)
    opened = open_model(path)
    assert isinstance(opened, LanguageModel)
    hidden = opened.model.hidden(TOKENS)
    losses = opened.model.nll(TOKENS)
    for chunk in range(2):
        expected = slow_llama_logits(weights, TOKENS[chunk].tolist())
        found = opened.model.logits(hidden[chunk])
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
        shares = np.exp(expected - expected.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        expected_losses = [-math.log(shares[i, TOKENS[chunk, i + 1]]) for i in range(6)]
        np.testing.assert_allclose(losses[chunk], expected_losses, atol=1e-4)


def test_llama_hands_out_true_ffn_inputs_and_takes_another_ffn(tmp_path: Path) -> None:
    opened = open_model(write_llama_folder(tmp_path, llama_weights()))
    assert isinstance(opened, LanguageModel)
    captured: list[F32] = []
    steps = []
    plain = opened.model.hidden(TOKENS, capture=lambda layer, x: captured.append(x), step=lambda: steps.append(1))
    assert [x.shape for x in captured] == [(14, 32)] * 2 and len(steps) == 2
    seen: list[F32] = []

    def ffn(index: int, layer: FfnLayer, x: F32) -> F32:
        assert index == len(seen) and x.shape == (2, 7, 32)
        seen.append(x.reshape(14, 32).copy())
        return numpy_ffn(layer, x)

    np.testing.assert_array_equal(opened.model.hidden(TOKENS, ffn), plain)
    for a, b in zip(captured, seen, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(opened.model.hidden(TOKENS, lambda index, layer, x: np.zeros_like(x)) - plain).max() > 0.01


def test_llama3_rope_scaling_slows_long_waves_only() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain, scaled = Rope(5e5, 16).frequencies()[0], Rope(5e5, 16, scaling=scaling).frequencies()[0]
    waves = 2 * math.pi / plain
    for wave, before, after in zip(waves, plain, scaled, strict=True):
        if wave < 8192 / 4:
            assert after == before
        elif wave > 8192:
            assert after == pytest.approx(before / 8)
        else:
            assert before / 8 < after < before
    assert any(waves > 8192) and any(waves < 2048)


def slow_bert_embedding(weights: dict[str, F32], tokens: list[int]) -> F64:
    """The unit vector of one sentence, row by row and head by head."""
    w = wide(weights)

    def norm(x: F64, name: str) -> F64:
        return (x - x.mean()) / math.sqrt(float(x.var()) + 1e-12) * w[name + ".weight"] + w[name + ".bias"]

    def dense(x: F64, name: str) -> F64:
        return w[name + ".weight"] @ x + w[name + ".bias"]

    rows = [
        norm(
            w["embeddings.word_embeddings.weight"][token]
            + w["embeddings.position_embeddings.weight"][position]
            + w["embeddings.token_type_embeddings.weight"][0],
            "embeddings.LayerNorm",
        )
        for position, token in enumerate(tokens)
    ]
    for layer in range(2):
        base = f"encoder.layer.{layer}."
        q, k, v = ([dense(x, f"{base}attention.self.{name}") for x in rows] for name in ("query", "key", "value"))
        mixed = []
        for mine in q:
            heads = []
            for head in range(4):
                part = slice(8 * head, 8 * head + 8)
                shares = np.exp([mine[part] @ key[part] / math.sqrt(8) for key in k])
                heads.append(sum(s * value[part] for s, value in zip(shares / shares.sum(), v, strict=True)))
            mixed.append(dense(np.concatenate(heads), base + "attention.output.dense"))
        rows = [norm(x + y, base + "attention.output.LayerNorm") for x, y in zip(rows, mixed, strict=True)]
        for i, x in enumerate(rows):
            hidden = dense(x, base + "intermediate.dense")
            hidden = np.array([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in hidden])
            rows[i] = norm(x + dense(hidden, base + "output.dense"), base + "output.LayerNorm")
    mean = np.mean(rows, axis=0)
    return mean / np.linalg.norm(mean)


def test_bert_against_loops(tmp_path: Path) -> None:
    weights = bert_weights()
    opened = open_model(write_bert_folder(tmp_path, weights))
    assert isinstance(opened, EmbeddingModel)
    sentences = [[2, 10, 11, 12, 3], [2, 3], [2, *range(4, 50), 3]]
    captured: list[F32] = []
    found = opened.model.embed(sentences, capture=lambda layer, x: captured.append(x))
    for row, sentence in zip(found, sentences, strict=True):
        np.testing.assert_allclose(row, slow_bert_embedding(weights, sentence), atol=3e-6)
    assert [x.shape for x in captured] == [(55, 32)] * 2
    with pytest.raises(ValueError, match="expected 1 to 128"):
        opened.model.embed([[2] * 129])


_BERT_GGUF = {
    "embeddings.word_embeddings": "token_embd", "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types", "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm",
}  # fmt: skip


def test_bert_from_gguf_is_the_same(tmp_path: Path) -> None:
    weights = bert_weights()
    folder = write_bert_folder(tmp_path, weights).parent
    renamed = {}
    for name, array in weights.items():
        stem, _, kind = name.rpartition(".")
        parts = stem.split(".")
        layer = f"blk.{parts[2]}." if parts[0] == "encoder" else ""
        renamed[f"{layer}{_BERT_GGUF['.'.join(parts[3:]) if layer else stem]}.{kind}"] = array
    pieces = (folder / "vocab.txt").read_text().split("\n")[:-1]
    marked = [p if p[0] == "[" else p[2:] if p.startswith("##") else "\u2581" + p for p in pieces]
    metadata = {
        "general.architecture": (8, "bert"), "bert.block_count": (4, 2), "bert.embedding_length": (4, 32),
        "bert.attention.head_count": (4, 4), "bert.attention.layer_norm_epsilon": (6, 1e-12),
        "bert.context_length": (4, 128), "tokenizer.ggml.model": (8, "bert"), "tokenizer.ggml.tokens": (9, (8, marked)),
    }  # fmt: skip
    path = tmp_path / "alone" / "bert.gguf"
    path.parent.mkdir()
    path.write_bytes(gguf_bytes(metadata, f32_tensors(renamed)))
    opened, original = open_model(path.parent), open_model(folder)  # of a folder, its only model
    assert isinstance(opened, EmbeddingModel) and isinstance(original, EmbeddingModel)
    text = "the abcing, zz."
    ids = opened.tokenizer.encode(text)
    assert ids == original.tokenizer.encode(text) and len(ids) > 6
    np.testing.assert_array_equal(opened.model.embed([ids]), original.model.embed([ids]))


@pytest.mark.parametrize("name", ["identity", "relu", "relu2", "gelu", "gelu_tanh", "silu"])
def test_activations(name: str) -> None:
    formulas = {
        "identity": lambda x: x,
        "relu": lambda x: max(x, 0.0),
        "relu2": lambda x: max(x, 0.0) ** 2,
        "gelu": lambda x: x * math.erfc(-x / math.sqrt(2)) / 2,
        "gelu_tanh": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "silu": lambda x: x / (1 + math.exp(-x)) if x > -700 else 0.0,
    }
    x = np.linspace(-12, 12, 481)
    expected = [formulas[name](value) for value in x]
    np.testing.assert_allclose(activate(name, x), expected, rtol=1e-12, atol=1e-12)
    single = activate(name, x.astype(np.float32))
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, expected, rtol=2e-5, atol=1e-6)
    assert np.isfinite(activate(name, np.array([-1e4, 1e4], np.float32))).all()


def test_numpy_ffn_agrees_with_float64() -> None:
    rng = np.random.default_rng(0)

    def array(*shape: int) -> F32:
        return (rng.standard_normal(shape) / 4).astype(np.float32)

    for gate in (None, array(24, 16)):
        for activation in ("gelu", "silu", "relu2"):
            b_gate = None if gate is None else array(24)
            layer = FfnLayer(array(24, 16), array(16, 24), gate, array(24), array(16), b_gate, activation)
            x = array(2, 5, 16)
            np.testing.assert_allclose(numpy_ffn(layer, x), float64_ffn(layer, x), atol=1e-5)
            assert layer.flops_per_token == 2 * 24 * 16 * (2 if gate is None else 3)


def test_unsupported_models_are_named(tmp_path: Path) -> None:
    for config, message in (
        ({**LLAMA, "model_type": "mamba"}, "'mamba' is not supported"),
        ({**LLAMA, "rope_scaling": {"rope_type": "spiral"}}, "'spiral' is not supported"),
        ({**LLAMA, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "incomplete: KeyError..factor"),
        ({**LLAMA, "num_attention_heads": 0}, "incomplete: ZeroDivisionError"),
        ({**LLAMA, "hidden_act": "selu"}, "selu"),
        ({"model_type": "llama"}, "num_hidden_layers"),
    ):
        with pytest.raises(FileFormatError, match=message):
            LlamaConfig.from_json(config)
    with pytest.raises(FileFormatError, match="'falcon'"):
        LlamaConfig.from_gguf({"general.architecture": "falcon"})
    with pytest.raises(FileFormatError, match=r"block_count|head_count"):
        LlamaConfig.from_gguf({"general.architecture": "llama"})
    with pytest.raises(FileFormatError, match="relative_key"):
        BertConfig.from_json({**BERT, "position_embedding_type": "relative_key"})
    with pytest.raises(ReportError, match="no file"):
        open_model(tmp_path / "none.gguf")
    with pytest.raises(ReportError, match=r"no model.safetensors"):
        open_model(tmp_path)
    (tmp_path / "x.bin").write_bytes(b"")
    with pytest.raises(ReportError, match="neither"):
        open_model(tmp_path / "x.bin")
    path = write_llama_folder(tmp_path / "m", llama_weights())
    (path.parent / "config.json").write_text(json.dumps([]))
    with pytest.raises(FileFormatError, match="JSON object"):
        open_model(path)


def test_what_cannot_run_whole_still_shows_its_feed_forward_layers(tmp_path: Path) -> None:
    weights = llama_weights()
    path = write_llama_folder(tmp_path / "m", weights)

    def statement() -> str:
        opened = open_model(path)
        assert isinstance(opened, FeedForwardModel) and opened.layers == 2
        layer = opened.ffn_layer(1)
        np.testing.assert_array_equal(layer.w_up, weights["model.layers.1.mlp.up_proj.weight"])
        np.testing.assert_array_equal(layer.w_gate, weights["model.layers.1.mlp.gate_proj.weight"])
        rows = opened.inputs(0)
        assert rows.shape == (1024, 32) and np.allclose(np.mean(rows**2, axis=1), 1, atol=1e-5)
        return opened.statement

    (path.parent / "tokenizer.json").rename(path.parent / "elsewhere.json")
    assert "no tokenizer.json beside it" in statement()
    (path.parent / "elsewhere.json").rename(path.parent / "tokenizer.json")
    (path.parent / "config.json").write_text(json.dumps({**LLAMA, "model_type": "mamba"}))
    assert "'mamba' is not supported" in statement() and "activation silu as its configuration" in statement()
    (path.parent / "config.json").unlink()
    assert "no config.json beside it" in statement() and "as none that this report knows is stated" in statement()
    (path.parent / "config.json").write_text(json.dumps(LLAMA))
    weights["model.layers.1.self_attn.sinks"] = np.zeros(4, np.float32)
    write_llama_folder(tmp_path / "m", weights)
    assert "a tensor 'model.layers.1.self_attn.sinks', whose meaning" in statement()


def test_experts_of_a_gguf_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"token_embd.weight": rng.standard_normal((9, 16)).astype(np.float32)}
    for layer in range(11):  # in the order of numbers, not of names
        for name, shape in (("gate", (3, 24, 16)), ("up", (3, 24, 16)), ("down", (3, 16, 24))):
            tensors[f"blk.{layer}.ffn_{name}_exps.weight"] = rng.standard_normal(shape).astype(np.float32)
    path = tmp_path / "moe.gguf"
    path.write_bytes(gguf_bytes({"general.architecture": (8, "qwen3moe")}, f32_tensors(tensors)))
    opened = open_model(path)
    assert isinstance(opened, FeedForwardModel) and opened.layers == 11
    assert "'qwen3moe' is not supported" in opened.statement and "the first expert of each" in opened.statement
    layer = opened.ffn_layer(10)
    np.testing.assert_array_equal(layer.w_down, tensors["blk.10.ffn_down_exps.weight"][0])
    np.testing.assert_array_equal(layer.w_gate, tensors["blk.10.ffn_gate_exps.weight"][0])


def test_damaged_models_are_named(tmp_path: Path) -> None:
    for change, message in (
        (("model.layers.1.mlp.down_proj.weight", None), "has no tensor 'model.layers.1.mlp.down_proj.weight'"),
        (("model.layers.0.self_attn.k_proj.weight", (32, 32)), r"has shape \(32, 32\), expected \(16, 32\)"),
        (("model.embed_tokens.weight", (258, 16)), r"has shape \(258, 16\), expected \(any, 32\)"),
        (("model.embed_tokens.weight", None), "has 0 tensors"),
    ):
        weights = llama_weights()
        name, shape = change
        if shape is None:
            del weights[name]
        else:
            weights[name] = np.zeros(shape, np.float32)
        with pytest.raises(FileFormatError, match=message):
            open_model(write_llama_folder(tmp_path, weights))
    encoder = bert_weights()
    encoder["encoder.layer.1.output.dense.weight"] = np.zeros((32, 32, 1), np.float32)
    with pytest.raises(FileFormatError, match=r"has shape \(32, 32, 1\), expected \(32, any\)"):
        open_model(write_bert_folder(tmp_path / "b", encoder))
    (tmp_path / "c").mkdir()
    other = {"some.weight": np.zeros((4, 4), np.float32)}
    (tmp_path / "c" / "model.safetensors").write_bytes(safetensors_bytes(other))
    with pytest.raises(FileFormatError, match="and no feed-forward weights were found"):
        open_model(tmp_path / "c")


def test_an_encoder_without_a_vocabulary_shows_its_feed_forward_layers(tmp_path: Path) -> None:
    path = write_bert_folder(tmp_path, bert_weights())
    assert isinstance(open_model(path), EmbeddingModel)
    for name in ("vocab.txt", "tokenizer.json"):
        (path.parent / name).unlink(missing_ok=True)
    opened = open_model(path)
    assert isinstance(opened, FeedForwardModel) and opened.layers == 2
    assert "neither vocab.txt nor tokenizer.json" in opened.statement
