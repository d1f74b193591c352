#!/usr/bin/env python3
"""The README's table of GPU measurements, made from the results files of run.py.

    bench/gpu/table.py                     prints it
    bench/gpu/table.py --write README.md   puts it between the file's two markers
    bench/gpu/table.py --check README.md   fails where the file has another one

One table per device, of the rows of which something is asked; without any results the rows say that they are not yet measured. The
rows are those of rows.txt: `fastffn-bench --device cuda --suite all --list`, which a test compares with the program.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- gpu:begin (bench/gpu/table.py --write README.md) -->", "<!-- gpu:end -->"
NOT_MEASURED = "not yet measured"


def asked_rows(text: str) -> list[tuple[str, list[str]]]:
    """Name and bars of each row that has any."""
    rows = [line.split("; ") for line in text.splitlines() if line and not line.endswith(" rows")]
    return [(name, bars) for name, *bars in rows if bars]


def digits(value: float, count: int = 3) -> str:
    """`count` significant digits, never an exponent."""
    exponent = int(f"{value:.{count - 1}e}".split("e")[1])
    return f"{value:.{max(0, count - 1 - exponent)}f}"


def duration(seconds: float) -> str:
    for unit, scale in (("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * scale:
            return f"{digits(seconds / scale)} {unit}"
    return f"{digits(seconds)} s"


def percent(share: float) -> str:
    return f"{digits(100 * share, 2 if share < 0.1 else 3)}%"


def cells(row: dict[str, Any] | None, bars: list[str]) -> list[str]:
    """Time, shares of ceilings, what is beside it, and what is asked."""
    if row is None:
        return [NOT_MEASURED, "", "", "; ".join(bars)]
    if "problem" in row["ours"]:
        return ["failed", "", "", "; ".join(bars)]
    shares = []
    if row["part"] == "decode" and "of_copy" in row:
        shares.append(f"{percent(row['of_copy'])} of copy")
    if row["part"] != "decode" and "of_peak" in row:
        shares.append(f"{percent(row['of_peak'])} of peak")
    beside = [f"{digits(rival['ratio'])}× {rival['name']}" for rival in row["rivals"] if "ratio" in rival]
    verdicts = []
    for text, bar in zip(bars, row["asked"], strict=True):
        saved = f" ({percent(bar['measured'])})" if bar["of"] == "memory_saved" and bar["met"] is not None else ""
        verdicts.append(f"{text}{saved}: {'not known' if bar['met'] is None else 'met' if bar['met'] else 'missed'}")
    return [duration(row["ours"]["median_s"]), ", ".join(shares), ", ".join(beside), "; ".join(verdicts)]


def heading(results: dict[str, Any]) -> str:
    device = results["device"]
    text = f"{device['name']}, driver {device['driver_version']}"
    if "runtime_cuda" in device:
        text += f", CUDA {device['runtime_cuda']}"
    text += f"; {results['date']}, commit {results['commit']}."
    ceilings = []
    for what, unit in (("copy", "TB/s"), ("bf16", "TFLOP/s"), ("int8", "TOP/s")):
        if rate := results["ceilings"].get(what, {}).get("per_second"):
            ceilings.append(f"{what} {digits(rate * 1e-12)} {unit}")
    text += f" Measured ceilings: {', '.join(ceilings) or 'none'}."
    counts = [
        f"{counts['passed']} {name} passed, {counts['failed']} failed" for name, counts in results["tests"].items()
    ]
    text += f" Tests: {'; '.join(counts) or 'not run'}."
    verdicts = [f"{tool} {found['verdict']}" for tool, found in results["sanitizers"].items()]
    return text + f" compute-sanitizer: {', '.join(verdicts) or 'not run'}."


def table(rows: list[tuple[str, list[str]]], results: dict[str, Any] | None) -> str:
    measured = {row["name"]: row for row in results["rows"]} if results else {}
    lines = [
        "| row of `fastffn-bench --device cuda` | time | of the ceiling | times as fast as | asked |",
        "|---|---|---|---|---|",
    ]
    for name, bars in rows:
        lines.append("| " + " | ".join([name, *cells(measured.get(name), bars)]) + " |")
    return "\n".join([heading(results), "", *lines] if results else lines)


def block(rows: list[tuple[str, list[str]]], results: list[dict[str, Any]]) -> str:
    """What is between the markers."""
    # Rows of a CPU in place of a GPU are no measurements.
    real = [entry for entry in results if not entry["device"]["emulated"]]
    if real:
        return "\n\n".join(table(rows, entry) for entry in real)
    # Long, and says nothing yet but what is asked.
    summary = f"<summary>{len(rows)} rows of <code>fastffn-bench --device cuda</code> and what is asked of each, {NOT_MEASURED}</summary>"
    return f"<details>\n{summary}\n\n{table(rows, None)}\n\n</details>"


def replaced(text: str, new: str) -> str:
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected one line '{BEGIN}' and after it one '{END}'")
    return text[: text.index(BEGIN) + len(BEGIN)] + f"\n\n{new}\n\n" + text[text.index(END) :]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of results files")
    parser.add_argument("--rows", type=Path, default=HERE / "rows.txt")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--write", type=Path, metavar="FILE")
    group.add_argument("--check", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    results = [json.loads(path.read_text()) for path in sorted(options.results.glob("*.json"))]
    new = block(asked_rows(options.rows.read_text()), results)
    path = options.write or options.check
    if not path:
        print(new)
        return 0
    old = path.read_text()
    try:
        wanted = replaced(old, new)
    except ValueError as problem:
        sys.exit(f"table.py: {path}: {problem}")
    if options.write:
        path.write_text(wanted)
    elif old != wanted:
        print(f"{path}: its GPU table is not what the results give; bench/gpu/table.py --write {path}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
