"""The page as a browser lays it out: nothing overlaps, sticks out or is hard to read, wide and narrow, light and dark.

Skipped where no Chromium is installed; test_report_output.py computes the drawings' boxes without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
from test_report_output import CASES

from fastffn.report import html


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    if browser.find() is None:
        pytest.skip("no Chromium")
    with browser.Browser() as found:
        yield found


@pytest.mark.parametrize("name", ["both", "many", "far", "nan errors", "alone", "long names", "part of the weights"])
def test_pages(name: str, tmp_path: Path, chromium: browser.Browser) -> None:
    page = tmp_path / "page.html"
    page.write_text(html.render(CASES[name]), "utf-8")
    problems = []
    for width in browser.WIDTHS:
        for scheme in browser.SCHEMES:
            chromium.show(page, width, scheme)
            problems += [f"{width} {scheme}: {line}" for line in chromium.ask(browser.OVERLAPS)]
    assert problems == []


def test_a_bad_page_is_found_out(tmp_path: Path, chromium: browser.Browser) -> None:
    page = tmp_path / "page.html"
    body = (
        '<svg viewBox="0 0 900 90" style="width:300px"><text x="5" y="50">one word</text><text x="9" y="52">two</text></svg>'
        '<p style="color:#aaa">pale</p><p style="width:3000px">wide</p>'
    )
    page.write_text(f"<!DOCTYPE html><html><body>{body}</body></html>", "utf-8")
    chromium.show(page, 400, "light")
    found = " ".join(chromium.ask(browser.OVERLAPS))
    for part in ('"one word" and "two" overlap', "smaller than 9 pixels", '"pale" has contrast', "pixels wide"):
        assert part in found
