"""A headless Chromium over its debugging pipe, with the standard library alone: open a page, ask it, take its picture.

``python tests/python/report/browser.py PAGE.html FOLDER`` writes pictures of a page, light and dark, wide and narrow, and
prints what overlaps.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDTHS = (1280, 400)
SCHEMES = ("light", "dark")

# Boxes of all text that shows, and pairs of them that meet; what sticks out of the page; contrast of text to its ground.
OVERLAPS = r"""
(() => {
  const boxes = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, text = node.textContent.trim(), holder = node.parentElement;
    if (!text || !holder || ["TITLE", "STYLE", "title", "desc"].includes(holder.tagName)) continue;
    if (!holder.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const r of range.getClientRects()) {
      if (r.width > 0 && r.height > 0) {
        // A line's box is taller than its letters: 20% off above and below.
        boxes.push({text: text.slice(0, 40), left: r.left + 0.5, right: r.right - 0.5,
                    top: r.top + 0.2 * r.height, bottom: r.bottom - 0.2 * r.height, holder});
      }
    }
  }
  const found = [];
  for (let i = 0; i < boxes.length; i++)
    for (let j = i + 1; j < boxes.length; j++) {
      const a = boxes[i], b = boxes[j];
      if (a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom)
        found.push(`"${a.text}" and "${b.text}" overlap`);
    }
  for (const box of boxes) {
    const scroller = box.holder.closest(".scroll");
    const drawing = box.holder.closest("svg");
    const limit = scroller ? null : drawing ? drawing.getBoundingClientRect() : document.body.getBoundingClientRect();
    if (limit && (box.left < limit.left - 1 || box.right > limit.right + 1)) found.push(`"${box.text}" sticks out`);
    if (drawing && parseFloat(getComputedStyle(box.holder).fontSize) * drawing.getScreenCTM().a < 9)
      found.push(`"${box.text}" is smaller than 9 pixels`);
  }
  if (document.documentElement.scrollWidth > document.documentElement.clientWidth)
    found.push(`the page is ${document.documentElement.scrollWidth} pixels wide`);
  const light = (colour) => {
    const parts = colour.match(/[\d.]+/g).map(Number).slice(0, 3).map((value) => value / 255)
      .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const seen = new Set();
  for (const box of boxes) {
    let ground = box.holder;
    while (ground && /^(rgba\(0, 0, 0, 0\)|transparent)$/.test(getComputedStyle(ground).backgroundColor))
      ground = ground.parentElement;
    const style = getComputedStyle(box.holder);
    const ink = box.holder.closest("svg") ? style.fill : style.color;
    const under = ground ? getComputedStyle(ground).backgroundColor : "rgb(255, 255, 255)";
    const [low, high] = [light(ink), light(under)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5 && !seen.has(ink + under)) {
      seen.add(ink + under);
      found.push(`"${box.text}" has contrast ${contrast.toFixed(2)}: ${ink} on ${under}`);
    }
  }
  return found;
})()
"""


def find() -> str | None:
    """The program, if there is one."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One browser with one page: ``with Browser() as browser``."""

    def __init__(self) -> None:
        program = find()
        if program is None:
            raise FileNotFoundError("no Chromium")
        self._folder = tempfile.mkdtemp(prefix="fastffn-browser-")
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()

        # The program reads its commands from 3 and answers on 4, whatever numbers the pipes have here.
        shell = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options += ["--no-first-run", "--disable-extensions", f"--user-data-dir={self._folder}"]
        self._process = subprocess.Popen(
            ["bash", "-c", shell, str(to_read), str(to_write), program, *options, "--remote-debugging-pipe"],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        shutil.rmtree(self._folder, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and its answer."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            read = os.read(self._from, 1 << 20)
            if not read:
                raise RuntimeError("the browser ended")
            self._buffer += read
        message, self._buffer = self._buffer.split(b"\0", 1)
        found: dict[str, Any] = json.loads(message)
        return found

    def show(self, page: Path, width: int, scheme: str) -> None:
        """Opens a file in a window of that width, light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.resolve().as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def ask(self, script: str) -> Any:
        """What a JavaScript expression gives."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"]))
        return answer["result"].get("value")

    def picture(self, target: Path) -> None:
        """The whole page as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        target.write_bytes(base64.b64decode(answer["data"]))


def main() -> int:
    """The command line."""
    page, folder = Path(sys.argv[1]), Path(sys.argv[2])
    bad = 0
    with Browser() as browser:
        for width in WIDTHS:
            for scheme in SCHEMES:
                browser.show(page, width, scheme)
                found = browser.ask(OVERLAPS)
                print(f"{width} {scheme}: {len(found)} problems", *found, sep="\n  ")
                browser.picture(folder / f"{page.stem}-{width}-{scheme}.png")
                bad += len(found)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
