"""A progress bar for the terminal, and a few plain lines where there is none."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

_CELLS = 20


class Progress:
    """Counts weighted steps. On a terminal one line is redrawn; elsewhere each stage prints one line when it begins."""

    def __init__(self, total: float, stream: TextIO | None = None) -> None:
        self._total = max(total, 1e-9)
        self._done = 0.0
        self._stage_end = 0.0
        self._stage = ""
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._begin = time.monotonic()
        self._drawn = 0.0

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        return min(self._done / self._total, 1.0)

    def stage(self, name: str, weight: float) -> None:
        """Begins the next stage, worth `weight` of the total; the one before counts as finished."""
        self._done = self._stage_end
        self._stage_end = self._done + weight
        self._stage = name
        if self._terminal:
            self._draw()
        else:
            elapsed = time.monotonic() - self._begin
            print(f"[{100 * self.fraction:3.0f}% {elapsed:4.0f} s] {name}", file=self._stream, flush=True)

    def advance(self, weight: float) -> None:
        """Adds to the stage under way, up to its end."""
        self._done = min(self._done + weight, self._stage_end)
        # Redrawing takes longer than some steps.
        if self._terminal and time.monotonic() - self._drawn > 0.1:
            self._draw()

    def finish(self) -> None:
        """Ends the line, so that what follows begins on its own."""
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _draw(self) -> None:
        width = shutil.get_terminal_size((80, 24)).columns
        elapsed = time.monotonic() - self._begin
        text = f" {100 * self.fraction:3.0f}%  {elapsed:3.0f} s  {self._stage}"
        filled = round(_CELLS * self.fraction)
        line = f"[{'#' * filled}{'.' * (_CELLS - filled)}]{text}"
        self._stream.write("\r\x1b[K" + line[: max(width - 1, 1)])
        self._stream.flush()
        self._drawn = time.monotonic()
