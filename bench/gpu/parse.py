"""What other programs print, as numbers: test reports, compute-sanitizer's summary, nvidia-smi's table."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any


def junit(path: Path) -> dict[str, Any]:
    """Counts of a JUnit file of pytest or ctest, and the names of tests that failed."""
    counts: dict[str, Any] = {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        bad = case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped") is not None or case.get("status") in ("notrun", "disabled")
        counts["failed" if bad else "skipped" if skipped else "passed"] += 1
        if bad:
            counts["failures"].append(f"{case.get('classname', '')}::{case.get('name', '')}".removeprefix("::"))
    return counts


def sanitizer_errors(text: str) -> int | None:
    """Errors that compute-sanitizer counted in a run, hazards of racecheck among them; None: it printed no summary."""
    found = None
    for line in text.splitlines():
        if match := re.search(r"ERROR SUMMARY: (\d+) error", line):
            found = (found or 0) + int(match[1])
        # Hazards that it calls warnings are reads and writes without a barrier all the same.
        if match := re.search(r"RACECHECK SUMMARY: (\d+) hazards? displayed \((\d+) errors?, (\d+) warnings?\)", line):
            found = (found or 0) + max(int(match[1]), int(match[2]) + int(match[3]))
    return found


def smi(text: str) -> dict[str, str]:
    """The first GPU of `nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader`."""
    fields = [field.strip() for field in text.strip().splitlines()[0].split(",")]
    if len(fields) != 3 or not re.fullmatch(r"\d+\.\d+", fields[2]):
        raise ValueError(f"nvidia-smi printed '{text.strip()}', expected name, driver version and compute capability")
    return {"name": fields[0], "driver_version": fields[1], "compute_capability": fields[2]}


def architectures(compute_capability: str) -> str:
    """What CMake builds the plugin for, for one device: 90 has instructions of its own, which 90a names."""
    number = compute_capability.replace(".", "")
    return f"{number}-real;{number}a-real" if number == "90" else f"{number}-real"


def slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def bars(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many of what is asked of rows was met."""
    counts = {"asked": 0, "met": 0, "missed": 0, "unknown": 0}
    for row in rows:
        for bar in row.get("asked", []):
            counts["asked"] += 1
            counts["unknown" if bar["met"] is None else "met" if bar["met"] else "missed"] += 1
    return counts
