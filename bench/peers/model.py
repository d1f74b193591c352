"""SmolLM2-135M whole: its feed-forward layers replaced by fastffn's, beside torch, transformers and llama.cpp.

    python bench/peers/model.py                      both tables, 2 threads, about 10 minutes
    python bench/peers/model.py ffn                  feed-forward layers alone, on the model's own inputs
    python bench/peers/model.py model                tokens per second of the whole model
    python bench/peers/model.py --quick              fewer rounds, no compiled contenders: a minute or two

All contenders have the same weights (the model's 4-bit file, dequantised and rounded to bf16), take turns in one process, and
use the same number of threads. Ratios are medians over rounds of the time of torch, or of transformers, over each contender's.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

PARSER = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
PARSER.add_argument("suite", nargs="?", default="all", choices=("all", "ffn", "model"))
PARSER.add_argument("--threads", type=int, default=2, help="of every contender (2)")
PARSER.add_argument("--tokens", default="1,16,512", help="for the suite ffn, a list (1,16,512)")
PARSER.add_argument("--prefill", type=int, default=512, help="tokens of the prompt (512)")
PARSER.add_argument("--decode", type=int, default=64, help="tokens generated after it (64)")
PARSER.add_argument("--rules", default="bf16,int8", help="what to replace by, a list (bf16,int8)")
PARSER.add_argument("--rounds", type=int, default=9, help="turns of each contender (9)")
PARSER.add_argument("--seconds", type=float, default=3.0, help="per contender, for the suite ffn (3)")
PARSER.add_argument("--no-compile", action="store_true", help="leave torch.compile out, which takes minutes to compile")
PARSER.add_argument("--no-llama", action="store_true", help="leave llama.cpp out")
PARSER.add_argument("--quick", action="store_true", help="3 rounds, 16 tokens, no compiled contenders")
PARSER.add_argument("--model", type=Path, help="another GGUF file of architecture llama")
PARSER.add_argument("--json", metavar="FILE", help="everything, for programs")
ARGUMENTS = PARSER.parse_args()
if ARGUMENTS.quick:
    ARGUMENTS.rounds, ARGUMENTS.seconds, ARGUMENTS.decode, ARGUMENTS.no_compile = 3, 1.0, 16, True
os.environ["OMP_NUM_THREADS"] = str(ARGUMENTS.threads)  # before torch is imported: its OpenMP reads it once

import model_contenders as contenders  # noqa: E402
import torch  # noqa: E402
from timing import QUIET_CORES, Times, measure  # noqa: E402

import fastffn as ff  # noqa: E402
import fastffn.torch as ft  # noqa: E402
from fastffn.report import assets  # noqa: E402


def main() -> None:
    torch.set_num_threads(ARGUMENTS.threads)
    path = ARGUMENTS.model or assets.fetch(assets.SMOLLM2)
    model, tokenizer = ft.llama_from_gguf(path, torch.bfloat16)
    text = (Path(assets.__file__).parent / "prose.txt").read_text("utf-8")
    ids = torch.tensor([tokenizer.encode(text)[: max(ARGUMENTS.prefill, *map(int, ARGUMENTS.tokens.split(",")))]])
    print(f"{path.name}, torch {torch.__version__}, {ARGUMENTS.threads} threads, {ff.active_kernel('bf16')}")
    found: dict[str, object] = {}
    if ARGUMENTS.suite in ("all", "ffn"):
        found["ffn"] = ffn_table(model, ids)
    if ARGUMENTS.suite in ("all", "model"):
        found["model"] = model_table(model, ids[:, : ARGUMENTS.prefill], path)
    if ARGUMENTS.json:
        Path(ARGUMENTS.json).write_text(json.dumps(found, indent=1))


def ffn_table(model: torch.nn.Module, ids: torch.Tensor) -> list[dict[str, object]]:
    """All feed-forward layers one after another, each on what it sees in the model: weights are as cold as they are there."""
    inputs = contenders.inputs_of_layers(model, ids)
    layers = {"torch": [layer.mlp for layer in model.model.layers]}
    for rule in ARGUMENTS.rules.split(","):
        copy = contenders.replaced(model, rule)
        layers[f"fastffn {rule}"] = [layer.mlp for layer in copy.model.layers]
    rows = []
    print("\nfeed-forward layers alone, ms for all of them (torch's time / this one's, median of rounds)")
    for tokens in map(int, ARGUMENTS.tokens.split(",")):
        calls: dict[str, Callable[[], object]] = {}
        for name, modules in layers.items():
            calls[name] = contenders.chain(modules, inputs, tokens)
        if not ARGUMENTS.no_compile:
            calls["torch.compile"] = contenders.compiled_chain(layers["torch"], inputs, tokens)
        times, load = measure(calls, seconds=ARGUMENTS.seconds, rounds=ARGUMENTS.rounds)
        rows.append(_row(f"{tokens} tokens", times, "torch", load))
    return rows


def _row(title: str, times: dict[str, Times], baseline: str, load: float) -> dict[str, object]:
    cells, row = [], {"title": title, "load": load}
    for name, time in times.items():
        ratio = times[baseline].ratio_to(time)
        row[name] = {"median": time.median(), "minimum": time.minimum(), "ratio": ratio}
        cells.append(f"{name} {1e3 * time.median():.2f} ({ratio:.2f}×)")
    print(f"{title:>11}  " + "   ".join(cells) + ("  *busy machine" if load > QUIET_CORES else ""))
    return row


def model_table(model: torch.nn.Module, ids: torch.Tensor, path: Path) -> list[dict[str, object]]:
    """Prefill of the prompt and greedy decoding after it: the time of one step, many steps in a turn."""
    runs: list[contenders.Runner] = [contenders.TorchRunner("torch loop", model, ids, ARGUMENTS.decode)]
    runs.append(contenders.GenerateRunner("transformers", model, ids, ARGUMENTS.decode))
    for rule in ARGUMENTS.rules.split(","):
        copy = contenders.replaced(model, rule)
        runs.append(contenders.TorchRunner(f"fastffn {rule}, torch loop", copy, ids, ARGUMENTS.decode))
        runs.append(contenders.GenerateRunner(f"fastffn {rule}, transformers", copy, ids, ARGUMENTS.decode))
        if not ARGUMENTS.no_compile:
            runs.append(contenders.CompiledRunner(f"fastffn {rule}, torch.compile", copy, ids, ARGUMENTS.decode))
    if not ARGUMENTS.no_compile:
        runs.append(contenders.CompiledRunner("torch.compile", model, ids, ARGUMENTS.decode))
    if not ARGUMENTS.no_llama:
        for kind in ("f16", "bf16", "q8_0"):
            runs.append(contenders.LlamaRunner(kind, path, ids, ARGUMENTS.decode, ARGUMENTS.threads))
    ready = []
    for run in runs:
        try:
            run.prepare()
            ready.append(run)
        except contenders.Skip as reason:
            print(f"left out: {run.name}: {reason}")
    rows = contenders.take_turns(ready, ARGUMENTS.rounds)
    base = rows["torch loop"]
    print(f"\nwhole model, tokens per second: prefill of {ids.shape[1]}, then {ARGUMENTS.decode} tokens greedily")
    print(f"{'':32} {'prefill':>16} {'decode':>16}   greedy text")
    table = []
    for run in ready:
        times, texts = rows[run.name], run.text == ready[0].text
        rates = ids.shape[1] / times["prefill"].median(), ARGUMENTS.decode / times["decode"].median()
        ratios = [base[part].ratio_to(times[part]) for part in ("prefill", "decode")]
        cells = [f"{rate:7.1f} ({ratio:.2f}×)" for rate, ratio in zip(rates, ratios, strict=True)]
        same = sum(a == b for a, b in zip(run.text, ready[0].text, strict=False))
        first = next((i for i, (a, b) in enumerate(zip(run.text, ready[0].text, strict=False)) if a != b), same)
        print(
            f"{run.name:32} {cells[0]:>16} {cells[1]:>16}   {'the same' if texts else f'the same for {first} tokens'}"
        )
        table.append({"name": run.name, "prefill": rates[0], "decode": rates[1], "ratios": ratios, "same": texts})
    return table


if __name__ == "__main__":
    main()
