"""fastffn.torch.replace on the real models that the report fetches, where they are in the cache folder already."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from fastffn.report import assets
from torch_replace_support import difference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.0")
ft = pytest.importorskip("fastffn.torch")

TEXT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


def found(asset: assets.Asset) -> Path:
    path = assets.locate(asset)
    if path is None:
        pytest.skip(f"{asset.name} is not in the cache folder; python -m fastffn report fetches it")
    return path


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    return ft.llama_from_gguf(found(assets.SMOLLM2), torch.bfloat16)


def logits(model: Any, ids: Any) -> Any:
    with torch.no_grad():
        return model(ids).logits[0].float()


def test_smollm2_from_its_file_is_the_model(smollm2: tuple[Any, Any]) -> None:
    """Text that makes sense: the weights are where they belong, rotary pairs included."""
    model, tokenizer = smollm2
    ids = torch.tensor([tokenizer.encode(TEXT, parse_special=True)])
    text = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    assert "The capital of France is Paris." in tokenizer.decode(text)


def test_smollm2_in_bf16(smollm2: tuple[Any, Any]) -> None:
    """The same greedy text; logits no further from f32 than the original's bf16 ones; another best token only in a tie."""
    model, tokenizer = smollm2
    ids = torch.tensor([tokenizer.encode(TEXT, parse_special=True)])
    replaced, exact = copy.deepcopy(model), copy.deepcopy(model).float()
    summary = ft.replace(replaced, "bf16", calibration=ids)
    assert len(summary.replaced) == 30
    # Fewer roundings than torch's, which rounds gate, activation and product to bf16.
    assert all(layer.error < layer.error_before * 1.1 for layer in summary)
    texts = [m.generate(ids, max_new_tokens=12, do_sample=False) for m in (model, replaced)]
    assert torch.equal(*texts)

    prose = (Path(assets.__file__).parent / "prose.txt").read_text("utf-8")
    ids = torch.tensor([tokenizer.encode(prose)[:96]])
    expected, before, after = (logits(m, ids) for m in (exact, model, replaced))
    assert difference(after, expected) < 1.1 * difference(before, expected)
    best, mine = before.argmax(-1), after.argmax(-1)
    rows = torch.arange(len(best))
    # Two steps of bf16 at the logits' size: each model may be one off.
    step = 2.0 ** (torch.floor(torch.log2(before.abs().amax(-1))) - 7)
    assert ((before[rows, best] - before[rows, mine]) <= 2 * step).all()
    assert (best == mine).float().mean() > 0.9


def test_smollm2_in_f32_with_layers_in_bf16(smollm2: tuple[Any, Any]) -> None:
    """Where no tie of bf16 logits decides, the greedy text stays."""
    model, tokenizer = copy.deepcopy(smollm2[0]).float(), smollm2[1]
    ids = torch.tensor([tokenizer.encode(TEXT.replace("capital of France", "highest mountain"), parse_special=True)])
    expected = model.generate(ids, max_new_tokens=24, do_sample=False)
    ft.replace(model, "bf16")
    assert torch.equal(model.generate(ids, max_new_tokens=24, do_sample=False), expected)


def test_smollm2_file_round_trip(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = copy.deepcopy(smollm2[0]), smollm2[1]
    ids = torch.tensor([tokenizer.encode("Once upon a time")])
    ft.replace(model, "int8")
    path = ft.save(model, tmp_path / "smollm2.safetensors")
    again = ft.load(path)
    assert torch.equal(logits(again, ids), logits(model, ids))
    assert path.stat().st_size < 200e6  # 81 MB of layers; attention and embeddings as they were, stored once


def test_minilm() -> None:
    """Sentence embeddings: bf16 and int8 layers leave them where they were."""
    path = found(assets.MINILM)
    model = transformers.BertModel.from_pretrained(path.parent, dtype=torch.float32).eval()
    ids = torch.tensor([[101, 1037, 2158, 2003, 5983, 2833, 1012, 102], [101, 1996, 3007, 2003, 3000, 1012, 1012, 102]])
    with torch.no_grad():
        expected = model(ids).last_hidden_state.mean(1)
        for rule, least in (("f32", 1 - 1e-6), ("bf16", 0.9999), ("int8", 0.995)):
            replaced = copy.deepcopy(model)
            summary = ft.replace(replaced, rule, calibration=ids)
            assert len(summary) == 6 and {layer.family for layer in summary} == {"bert"}
            y = replaced(ids).last_hidden_state.mean(1)
            assert torch.nn.functional.cosine_similarity(y, expected).min() > least
