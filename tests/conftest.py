"""Puts tests/ on the import path, so that tests say `from reference import ffn`; keeps parallel workers out of each other's way."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

# Workers of pytest-xdist share the cores: threads that spin while they wait would only take time from each other. Set before
# anything loads an OpenMP runtime.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# The CUDA suite (python/cuda_support.py). A process looks for the plugin once, so its path is set before anything asks.
EMULATED = os.environ.get("FASTFFN_EMULATED_PLUGIN")
if EMULATED:
    os.environ["FASTFFN_CUDA_PLUGIN"] = str(Path(EMULATED).resolve())


def pytest_addoption(parser):
    parser.addoption(
        "--cuda",
        choices=["auto", "emulated", "gpu"],
        default="auto",
        help="devices of the CUDA tests: a GPU; the emulated plugin at FASTFFN_EMULATED_PLUGIN; auto: the latter where it is set",
    )


def pytest_configure(config):
    config.addinivalue_line("markers", "quick: one of each test on a CUDA device (python/conftest.py)")
