"""Marks for the report's tests, and the default models for those that need them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastffn.report import assets
from fastffn.report.errors import ReportError


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "model: needs a default model, and downloads it once; skipped without a network")


def _path_of(asset: assets.Asset) -> Path:
    try:
        return assets.fetch(asset)
    except ReportError as error:
        pytest.skip(f"cannot get {asset.name}: {error}")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct's GGUF file."""
    return _path_of(assets.SMOLLM2)


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """all-MiniLM-L6-v2's safetensors file."""
    return _path_of(assets.MINILM)
