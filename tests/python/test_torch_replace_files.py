"""Replaced models in files: save, load, state_dict, copies; and files that are not what they should be."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import pytest

import fastffn as ff
from torch_replace_support import CASES, Toy, difference, outputs, token_ids, toy, transformer

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
ft = pytest.importorskip("fastffn.torch")


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and the description."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in list(file.keys())}
        return tensors, json.loads(file.metadata()["fastffn"])


@pytest.mark.parametrize("name", ["llama with biases", "gemma3", "bert", "qwen2-moe", "deepseek-v3", "gpt-oss", "gpt2"])
def test_a_transformer_comes_back_from_its_file_alone(name: str, tmp_path: Path) -> None:
    model, ids = transformer(name, dtype=torch.bfloat16), token_ids()
    ft.replace(model, "int8")
    expected = outputs(model, ids)
    again = ft.load(ft.save(model, tmp_path / "m.safetensors"))
    assert type(again) is type(model) and not again.training
    assert torch.equal(outputs(again, ids), expected)
    assert {n: t.dtype for n, t in again.state_dict().items()} == {n: t.dtype for n, t in model.state_dict().items()}
    if CASES[name].generates:
        tokens = [m.generate(ids, max_new_tokens=5, do_sample=False) for m in (model, again)]
        assert torch.equal(*tokens)
        assert again.generation_config == model.generation_config
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors"]


def test_a_file_is_written_again_from_what_was_loaded(tmp_path: Path) -> None:
    model = transformer("llama")
    ft.replace(model, {"layers.0": None, "*": "int4"})
    first, about = contents(ft.save(model, tmp_path / "a.safetensors"))
    second, about_again = contents(ft.save(ft.load(tmp_path / "a.safetensors"), tmp_path / "b.safetensors"))
    assert about == about_again and first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    model = toy(tied=True)
    ft.replace(model, "bf16")
    path = ft.save(model, tmp_path / "m.safetensors")
    tensors, _ = contents(path)
    packed = tensors["layers.1.mlp.w_up"]
    assert ("embed.weight" in tensors) != ("head.weight" in tensors)
    assert packed.dtype == torch.uint8 and ff.info(packed).format == "bf16"
    again = ft.load(path, Toy(tied=True))
    assert again.head.weight is again.embed.weight
    assert torch.equal(outputs(again, token_ids()), outputs(model, token_ids()))


def test_into_a_model_without_weights(tmp_path: Path) -> None:
    model = toy()
    ft.replace(model, "int8")
    path = ft.save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        shell = Toy()
    again = ft.load(path, shell)
    assert again is shell
    assert torch.equal(outputs(again, token_ids()), outputs(model, token_ids()))
    assert all(t.data_ptr() % 64 == 0 for t in again.buffers() if t.dtype == torch.uint8)


def test_into_a_transformer_without_weights(tmp_path: Path) -> None:
    """Rotary frequencies are in no state_dict, and in the file all the same."""
    model, ids = transformer("llama"), token_ids()
    ft.replace(model, "int8")
    path = ft.save(model, tmp_path / "m.safetensors")
    with torch.device("meta"):
        shell = type(model)(model.config)
    assert torch.equal(outputs(ft.load(path, shell), ids), outputs(model, ids))


@pytest.mark.parametrize("method", ["LowRank", "Moefication", "Cmoe"])
def test_every_method(method: str, tmp_path: Path) -> None:
    rule = {
        "LowRank": ft.LowRank(ratio=0.5),
        "Moefication": ft.Moefication(experts=8, picks=4),
        "Cmoe": ft.Cmoe(experts=8, shared=2, picks=2),
    }[method]
    model, ids = toy(), token_ids(4, 8)
    ft.replace(model, rule, calibration=ids)
    again = ft.load(ft.save(model, tmp_path / "m.safetensors"), Toy())
    assert torch.equal(outputs(again, ids), outputs(model, ids))


def test_bitnet_with_its_norm(tmp_path: Path) -> None:
    model, ids = transformer("bitnet, not quantised"), token_ids()
    for layer in model.model.layers:
        layer.mlp.ffn_sub_norm.weight.data.uniform_(0.5, 1.5)
    ft.replace(model, "ternary")
    again = ft.load(ft.save(model, tmp_path / "m.safetensors"))
    assert torch.equal(outputs(again, ids), outputs(model, ids))


@pytest.mark.parametrize("name", ["llama", "bert", "mixtral"])
def test_state_dicts_copies_and_pickles(name: str) -> None:
    model, ids = transformer(name), token_ids()
    ft.replace(model, "int8")
    expected = outputs(model, ids)
    other = transformer(name, seed=1)
    ft.replace(other, "int8")
    assert difference(outputs(other, ids), expected) > 0.1
    other.load_state_dict(model.state_dict())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (other, copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(outputs(again, ids), expected)


# ---- what does not fit ----


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = toy()
    ft.replace(model, {"layers.2": None, "*": "int8"})
    return ft.save(model, tmp_path / "m.safetensors")


def rewritten(path: Path, change: Any) -> Path:
    """The file after change(tensors, description)."""
    from safetensors.torch import save_file

    tensors, about = contents(path)
    change(tensors, about)
    save_file(tensors, str(path), metadata={"fastffn": json.dumps(about)})
    return path


def test_another_model(saved: Path) -> None:
    class Narrow(Toy):
        def __init__(self) -> None:
            from torch_replace_support import Mlp

            super().__init__(make=lambda: Mlp(d_ff=40))

    with pytest.raises(ValueError, match=r"'layers\.0\.mlp' of Narrow has the shape 32×40, and the file's layer 32×56"):
        ft.load(saved, Narrow())
    with pytest.raises(ValueError, match=r"the file packs 'layers\.1\.mlp', and Toy has no such"):
        ft.load(saved, Toy(layers=1))
    with pytest.raises(
        ValueError, match=r"the model has 'layers\.3\.mlp\.down_proj\.weight'.* which the file does not"
    ):
        ft.load(saved, Toy(layers=4))
    with pytest.raises(ValueError, match=r"the file has 'layers\.2\.mlp.* and .* more, which the model does not"):
        ft.load(saved, Toy(layers=2))
    with pytest.raises(ValueError, match="does not say which transformers model it was; pass model="):
        ft.load(saved)


def test_damage(saved: Path) -> None:
    def flip(tensors: dict[str, Any], _about: Any) -> None:
        tensors["layers.1.mlp.w_gate"][900] ^= 1

    with pytest.raises(ValueError, match=r"'layers\.1\.mlp\.w_gate': .*checksum"):
        ft.load(rewritten(saved, flip), Toy())


def test_tensors_that_are_missing(saved: Path) -> None:
    rewritten(saved, lambda tensors, _: tensors.pop("layers.1.mlp.w_down"))
    with pytest.raises(ValueError, match=r"'layers\.1\.mlp': the file has no 'w_down' for kind 'FFN'"):
        ft.load(saved, Toy())


def test_shapes_that_differ(saved: Path) -> None:
    rewritten(saved, lambda tensors, _: tensors.update({"layers.0.norm.weight": torch.zeros(5)}))
    with pytest.raises(ValueError, match=r"'layers\.0\.norm\.weight' has shape \(5,\) in the file, expected \(32,\)"):
        ft.load(saved, Toy())


def test_newer_and_foreign_files(saved: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    rewritten(saved, lambda _, about: about.update(version=9))
    with pytest.raises(ValueError, match="has version 9 of the description, this fastffn reads 1"):
        ft.load(saved, Toy())
    save_file({"x": torch.zeros(3)}, str(tmp_path / "plain.safetensors"))
    with pytest.raises(ValueError, match=r"was not written by fastffn\.torch\.save"):
        ft.load(tmp_path / "plain.safetensors", Toy())
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 20)
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        ft.load(tmp_path / "junk.safetensors", Toy())


def test_files_import_nothing_but_models(saved: Path) -> None:
    def hostile(_tensors: Any, about: dict[str, Any]) -> None:
        about.update({"class": ["os", "system"], "config_class": ["os", "system"], "config": {}})

    with pytest.raises(ImportError, match="os is not part of transformers"):
        ft.load(rewritten(saved, hostile))


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no packed layers"):
        ft.save(toy(), tmp_path / "m.safetensors")

    class Own:
        def build(self, weights: Any, inputs: Any) -> Any:
            return torch.nn.Linear(weights.d_model, weights.d_model)

    model = toy()
    ft.replace(model, Own())
    with pytest.raises(ValueError, match=r"layers\.0\.mlp is Linear, which only the code that made it can build"):
        ft.save(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


def test_one_module_under_two_names_stays_one(tmp_path: Path) -> None:
    model = toy()
    first, second = [name for name, module in model.named_modules() if name.endswith("mlp")][:2]
    owner, _, child = second.rpartition(".")
    setattr(model.get_submodule(owner), child, model.get_submodule(first))
    ft.replace(model, {second: "int8", "*": "f32"})  # either name will do
    again = ft.load(ft.save(model, tmp_path / "m.safetensors"), toy())
    assert again.get_submodule(first) is again.get_submodule(second)
    assert "int8" in repr(again.get_submodule(first))
    assert torch.equal(outputs(again, token_ids()), outputs(model, token_ids()))


@pytest.mark.parametrize("damage", ["{", "[]", "layers", "aliases", "name", "settings"])
def test_a_damaged_description_is_named(damage: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = toy()
    ft.replace(model, "int8")
    tensors, about = contents(ft.save(model, tmp_path / "m.safetensors"))
    if damage in about:
        del about[damage]
    elif damage == "settings":
        about["layers"][0][damage] = {}
    elif damage == "name":
        del about["layers"][0][damage]
    text = damage if damage in ("{", "[]") else json.dumps(about)
    save_file(tensors, str(tmp_path / "bad.safetensors"), metadata={"fastffn": text})
    with pytest.raises(ValueError, match="damaged|do not fit"):
        ft.load(tmp_path / "bad.safetensors", toy())


def test_places_that_are_not_there_are_named(tmp_path: Path) -> None:
    model = toy()
    ft.replace(model, "int8")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        ft.save(model, tmp_path / "nowhere" / "m.safetensors")
    for path in (tmp_path, tmp_path / "m.safetensors"):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            ft.load(path)


def test_a_file_imports_nothing_but_models(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from safetensors.torch import save_file

    model = toy()
    ft.replace(model, "int8")
    tensors, about = contents(ft.save(model, tmp_path / "m.safetensors"))
    about |= {
        "class": ["transformers.utils.hub", "cached_file"],
        "config_class": ["transformers.utils.hub", "cached_file"],
    }
    about |= {"config": {}}
    save_file(tensors, str(tmp_path / "bad.safetensors"), metadata={"fastffn": json.dumps(about)})
    with pytest.raises(ImportError, match="is no PreTrainedModel"):
        ft.load(tmp_path / "bad.safetensors")
