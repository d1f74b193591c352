"""fastffn.torch.replace on tiny models of every family: outputs, generate(), errors, bytes, and what it refuses."""

from __future__ import annotations

import copy
import gc
import importlib
import re
import weakref
from pathlib import Path
from typing import Any

import pytest

import fastffn as ff
import torch_replace_support as support
from torch_replace_support import CASES, WIDTH, Mlp, Toy, difference, outputs, token_ids, toy, transformer

torch = pytest.importorskip("torch")
ft = pytest.importorskip("fastffn.torch")
nn = torch.nn

# Relative differences of whole tiny models (two layers, weights of variance 1 / in_features). f32 only sums in another order.
EXACT = 3e-6


@pytest.mark.parametrize("name", CASES)
def test_f32_equals_the_original(name: str) -> None:
    model, ids, case = transformer(name), token_ids(), CASES[name]
    expected = outputs(model, ids)
    summary = ft.replace(model, "f32")
    assert len(summary.replaced) == len(summary) == case.layers
    assert case.family in {layer.family for layer in summary}
    assert difference(outputs(model, ids), expected) < EXACT
    assert all(layer.error < 1e-6 for layer in summary)
    kinds = {type(module).__name__ for module in model.modules()}
    assert kinds & {"FFN", "Experts"}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.generates])
def test_generate_keeps_working(name: str) -> None:
    """With its cache of keys and values, greedy and in beams; f32 gives the very tokens."""
    model, ids = transformer(name), token_ids()
    settings: list[dict[str, Any]] = [{"do_sample": False}, {"do_sample": False, "num_beams": 2}]
    settings = settings[: 2 if name in ("llama", "mixtral") else 1]
    before = [model.generate(ids, max_new_tokens=6, **options) for options in settings]
    ft.replace(model, "f32")
    for options, expected in zip(settings, before):
        assert torch.equal(model.generate(ids, max_new_tokens=6, **options), expected)


@pytest.mark.parametrize("name", ["llama", "bert", "mixtral", "gpt-oss"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_models_in_other_dtypes(name: str, dtype: str) -> None:
    """x in the model's dtype, y too; the packed layer is no further from float32 than the model's own, rounding aside."""
    kind = getattr(torch, dtype)
    model, ids = transformer(name, dtype=kind), token_ids()
    expected = outputs(copy.deepcopy(model).float(), ids)
    before = difference(outputs(model, ids), expected)
    summary = ft.replace(model, {"bfloat16": "bf16", "float16": "f16"}[dtype])
    assert difference(outputs(model, ids), expected) < 1.5 * before + 1e-3
    for layer in summary:
        assert layer.error < 1.5 * layer.error_before


@pytest.mark.parametrize(
    ("rule", "worst"),
    [("bf16", 0.01), ("f16", 0.01), ("int8", 0.05), ("int4", 0.3), ("ternary", 1.2), ("sparse24", 0.9)],
)
@pytest.mark.parametrize("name", ["llama", "bert", "qwen2-moe"])
def test_every_format(name: str, rule: str, worst: float) -> None:
    model, ids = transformer(name), token_ids()
    summary = ft.replace(model, rule)
    assert {layer.rule for layer in summary} == {rule}
    for layer in summary:
        assert 0 < layer.error < worst
        assert layer.bytes_after == sum(
            t.numel() * t.element_size() for t in model.get_submodule(_now(layer.name, layer.family)).buffers()
        )
    assert outputs(model, ids).isfinite().all()


def _now(name: str, family: str) -> str:
    return name + ".output.ffn" if family == "bert" else name


def test_errors_are_those_of_the_layer() -> None:
    """Against a float64 product, on the inputs that calibration gave: nothing in the summary is made up."""
    model, ids = toy(), token_ids(3, 11)
    mlp, seen = copy.deepcopy(model.layers[1].mlp).double(), []
    hook = model.layers[1].mlp.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    outputs(model, ids)
    hook.remove()
    summary = ft.replace(model, {1: "int4"}, calibration=ids)
    layer = summary.replaced[0]
    with torch.no_grad():
        expected = mlp(seen[0].double())
        error = difference(model.layers[1].mlp(seen[0]).double(), expected)
    assert summary.inputs == "calibration" and summary.rows == 33
    assert layer.error == pytest.approx(error, rel=1e-3)
    assert layer.bytes_before == 3 * 4 * WIDTH * 56


def test_original_is_freed_layer_by_layer() -> None:
    """When the third layer is packed, the first two originals are gone."""
    model = toy(layers=4)
    originals = [weakref.ref(block.mlp) for block in model.layers]
    alive: list[int] = []

    class Watching:
        def build(self, weights: Any, inputs: Any) -> Any:
            gc.collect()
            alive.append(sum(ref() is not None for ref in originals))
            return ft.PackFormat("bf16").build(weights, inputs)

    ft.replace(model, Watching())
    gc.collect()
    assert alive == [4, 3, 2, 1]
    assert all(ref() is None for ref in originals)


def test_a_shared_module_is_packed_once() -> None:
    shared = Mlp()
    model = toy(make=lambda: shared)
    ids, expected = token_ids(), outputs(model, token_ids())
    summary = ft.replace(model, "f32")
    assert len(summary) == 1
    assert model.layers[0].mlp is model.layers[1].mlp is model.layers[2].mlp is not shared
    assert difference(outputs(model, ids), expected) < EXACT


def test_tied_embeddings_stay_tied() -> None:
    model = toy(tied=True)
    ft.replace(model, "bf16")
    assert model.head.weight is model.embed.weight


def test_weights_shared_between_layers() -> None:
    """Different modules with the same parameters: each is packed for itself."""
    model = toy()
    model.layers[2].mlp.up_proj.weight = model.layers[0].mlp.up_proj.weight
    ids, expected = token_ids(), outputs(model, token_ids())
    ft.replace(model, "f32")
    assert difference(outputs(model, ids), expected) < EXACT


def test_training_mode_is_kept() -> None:
    model = transformer("bert").train()
    summary = ft.replace(model, "f32", calibration=token_ids())
    assert model.training and model.encoder.layer[0].output.training and model.encoder.layer[0].output.dropout.training
    assert max(layer.error for layer in summary) < 1e-6  # measured without dropout


def test_dtype_moves_leave_packed_weights_alone() -> None:
    model = toy()
    ft.replace(model, "int8")
    before = model.layers[0].mlp.w_up.clone()
    model.to(torch.bfloat16)
    assert model.layers[0].mlp.w_up.dtype == torch.uint8 and torch.equal(model.layers[0].mlp.w_up, before)
    assert outputs(model, token_ids()).isfinite().all()


def test_bitnet_linear_layers_are_imported_exactly() -> None:
    """transformers' ternary layers, offline (codes and a scale) and packed: stored with that scale, sub-norm kept."""
    integration = pytest.importorskip("transformers.integrations.bitnet")
    model = transformer("bitnet, not quantised")
    for index, layer in enumerate(model.model.layers):
        for name in ("gate_proj", "up_proj", "down_proj"):
            old = getattr(layer.mlp, name)
            new = integration.AutoBitLinear(old.in_features, old.out_features, bias=False)
            codes = torch.randint(-1, 2, old.weight.shape).float()
            new.weight.data, new.weight_scale = codes, torch.tensor([0.11 + index])
            setattr(layer.mlp, name, new)
        layer.mlp.ffn_sub_norm.weight.data = torch.rand(56) + 0.5
    mlp = model.model.layers[1].mlp
    codes = mlp.up_proj.weight.detach().clone()
    summary = ft.replace(model, "ternary")
    w_up = model.model.layers[1].mlp.w_up
    assert torch.equal(ff.unpack(w_up), codes * torch.tensor(1.11))
    # Both quantise activations to int8 per token; the model rounds x / scale, where ties may fall otherwise.
    assert all(layer.error < 0.02 and layer.error_before < 0.02 for layer in summary)


def test_packed_bitnet_codes() -> None:
    integration = pytest.importorskip("transformers.integrations.bitnet")
    from fastffn.torch._replace.bitnet import unpacked_codes

    codes = torch.randint(-1, 2, (24, 10))
    assert torch.equal(unpacked_codes(integration.pack_weights(codes.clone())), codes.to(torch.int8))


def test_gradients_reach_what_is_not_replaced() -> None:
    """Packed weights are frozen; with f32 ones gradients of the rest are the original's."""
    model, ids = toy(), token_ids()
    model(ids).square().sum().backward()
    expected = model.embed.weight.grad.clone()
    model.zero_grad()
    ft.replace(model, "f32")
    model(ids).square().sum().backward()
    assert difference(model.embed.weight.grad, expected) < 1e-4
    assert not [name for name, _ in model.named_parameters() if ".mlp." in name]


def test_compiled_without_a_break() -> None:
    model, ids = toy(), token_ids()
    ft.replace(model, {0: "bf16", 1: "int8", 2: "f32"})
    expected = outputs(model, ids)
    with torch.no_grad():
        assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(ids).float(), expected)


def test_experts_compiled_without_a_break() -> None:
    model = transformer("mixtral")
    ft.replace(model, "int8")
    experts, x = model.model.layers[0].mlp.experts, torch.randn(9, WIDTH)
    ids, weights = torch.randint(0, 4, (9, 2)), torch.rand(9, 2)
    with torch.no_grad():
        compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, ids, weights), experts(x, ids, weights))


# ---- what it refuses ----


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.omega = nn.Linear(WIDTH, 56), nn.Linear(56, WIDTH)

    def forward(self, x: Any) -> Any:
        return self.omega(self.alpha(x).relu())


def test_unknown_models_are_told_what_is_known() -> None:
    with pytest.raises(
        ValueError, match=r"(?s)Toy has no feed-forward layer.*gate_proj.*intermediate.*register_family"
    ):
        ft.replace(toy(make=Unknown), "bf16")


def test_register_family() -> None:
    def mine(module: Any) -> Any:
        if not isinstance(module, Unknown):
            return None
        a, o = module.alpha, module.omega
        return ft.DenseWeights(a.weight, o.weight, b_up=a.bias, b_down=o.bias, activation="relu")

    families = importlib.import_module("fastffn.torch._replace.families")

    known = list(families._FAMILIES)
    try:
        ft.register_family("mine", mine, "alpha and omega")
        assert ft.families()["mine"] == "alpha and omega"
        model, ids = toy(make=Unknown), token_ids()
        expected = outputs(model, ids)
        assert {layer.family for layer in ft.replace(model, "f32")} == {"mine"}
        assert difference(outputs(model, ids), expected) < EXACT

        ft.register_family("mine", lambda m: "no" if isinstance(m, Unknown) else None)
        with pytest.raises(TypeError, match="gave str, expected DenseWeights"):
            ft.replace(toy(make=Unknown), "f32")
    finally:
        families._FAMILIES[:] = known


class Scaled(Mlp):
    """Looks like Mlp, and is not."""

    def forward(self, x: Any) -> Any:
        return 1.1 * super().forward(x)


def test_a_layer_that_computes_something_else_is_refused() -> None:
    model = toy(make=Scaled)
    expected = outputs(model, token_ids())
    with pytest.raises(ValueError, match=r"layers\.0\.mlp: Scaled has the parts .* computes something else"):
        ft.replace(model, "f32")
    assert torch.equal(outputs(model, token_ids()), expected)


class WholeBlock(Mlp):
    """Has the layer's parts, and is called with more than x, as OPT's decoder layers are."""

    def forward(self, x: Any, mask: Any) -> Any:
        return super().forward(x) * mask


def test_a_layer_that_is_called_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layers\.0\.mlp: WholeBlock has the parts .* computes something else"):
        ft.replace(toy(make=WholeBlock), "f32")


def test_what_is_left_out_is_said() -> None:
    model = toy()
    model.layers[1].mlp.act_fn = nn.Tanh()
    summary = ft.replace(model, "f32")
    assert [layer.name for layer in summary] == ["layers.0.mlp", "layers.2.mlp"]
    assert "left out: layers.1.mlp (Mlp): its activation Tanh is none of" in str(summary)


def test_an_activation_that_the_library_does_not_have() -> None:
    with pytest.raises(ValueError, match=r"its activation Tanh is none of identity"):
        ft.replace(toy(make=lambda: Mlp(act=nn.Tanh())), "f32")


def test_meta_models() -> None:
    with torch.device("meta"):
        model = Toy()
    with pytest.raises(ValueError, match="'embed.weight' is on the meta device and has no numbers"):
        ft.replace(model, "bf16")


def test_offloaded_models() -> None:
    model = toy()
    model.layers[1]._hf_hook = object()
    with pytest.raises(ValueError, match=r"'layers\.1' has a hook of accelerate"):
        ft.replace(model, "bf16")


def test_other_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"model is dict, expected a torch\.nn\.Module"):
        ft.replace({}, "bf16")
    with pytest.raises(ValueError, match="the model is itself a feed-forward layer"):
        ft.replace(Mlp(), "bf16")
    with pytest.raises(ValueError, match="rows is 0"):
        ft.replace(toy(), "bf16", rows=0)
    with pytest.raises(TypeError, match="calibration is neither a tensor of token ids"):
        ft.replace(toy(), "bf16", calibration="text")


def test_quantised_weights() -> None:
    model = toy()
    model.layers[0].mlp.up_proj.weight = nn.Parameter(torch.zeros(56, WIDTH, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"layers\.0\.mlp: w_up is torch\.int8, expected"):
        ft.replace(model, "bf16")


def test_twice() -> None:
    """Packed layers are no plain ones: replacing again says so."""
    model = toy()
    ft.replace(model, {0: "int8", 1: "int8"})
    assert [layer.name for layer in ft.replace(model, "bf16")] == ["layers.2.mlp"]
    with pytest.raises(ValueError, match="packed already"):
        ft.replace(model, "bf16")


def test_the_toy_is_one_of_the_cases() -> None:
    """Without transformers the tests above still run on something."""
    model, ids = toy(), token_ids()
    expected = outputs(model, ids)
    assert len(ft.replace(model, "f32")) == 3
    assert difference(outputs(model, ids), expected) < EXACT
    assert support.VOCABULARY > 3


def test_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """python/docs/replace.md, block after block; it registers a family, which is taken back."""
    pytest.importorskip("transformers", minversion="5.0")
    monkeypatch.chdir(tmp_path)
    families = importlib.import_module("fastffn.torch._replace.families")
    known, names = list(families._FAMILIES), {"__name__": "docs"}
    page = Path(__file__).parents[2] / "python" / "docs" / "replace.md"
    blocks = re.findall(r"^```py\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    try:
        for block in blocks:
            exec(compile(block, "replace.md", "exec"), names)
    finally:
        families._FAMILIES[:] = known
    assert len(blocks) == 3 and torch.equal(
        names["again"](names["prompt"]).logits, names["model"](names["prompt"]).logits
    )


def test_the_page_names_every_family() -> None:
    page = (Path(__file__).parents[2] / "python" / "docs" / "replace.md").read_text("utf-8")
    assert all(f"\n| {name} |" in page for name in ft.families())
