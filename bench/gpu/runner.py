"""Commands with a log each, limits, and a clock."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


class OutOfTime(Exception):
    pass


class Runner:
    """Commands with a log each, and a clock."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.begin = time.monotonic()
        self.work: Path = options.work
        self.logs = self.work / "logs"

    def left(self) -> float:
        return self.options.minutes * 60 - (time.monotonic() - self.begin) if self.options.minutes else float("inf")

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.begin:5.0f} s] {text}", flush=True)

    def run(
        self, name: str, command: list[str], limit: float = float("inf"), **environment: str
    ) -> tuple[int | None, str]:
        """Exit status and output; None: it ran past `limit`. Raises OutOfTime where this run's own time ends first."""
        shown = " ".join([*(f"{k}={shlex.quote(v)}" for k, v in environment.items()), shlex.join(command)])
        self.say(f"{name}: {shown}")
        if self.options.dry_run:
            return 0, ""
        # Its last seconds belong to what must be written down.
        seconds = min(limit, self.left() - 10)
        if seconds <= 0:
            raise OutOfTime(name)
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name.replace(' ', '-')}.log"
        with log.open("w") as out:
            # A group of its own, so that what it started ends with it.
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status: int | None = process.wait(None if seconds == float("inf") else seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if seconds < limit:
                    raise OutOfTime(name) from None
                status = None
        text = log.read_text(errors="replace")
        if status != 0:
            self.say(f"{name}: {'out of its time' if status is None else f'exit status {status}'}; the end of {log}:")
            print("\n".join(text.splitlines()[-30:]), flush=True)
        return status, text
