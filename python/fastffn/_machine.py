"""What runs the calls: threads and kernels."""

from __future__ import annotations

from typing import Any

from fastffn import _core


def set_num_threads(threads: int) -> None:
    """Threads of the calls to come, in the whole process.

    Args:
        threads: 1 or more; 0 for the default, which is OpenMP's: OMP_NUM_THREADS and torch.set_num_threads() set it.
    """
    _core.set_num_threads(threads)


def get_num_threads() -> int:
    """Threads that a call from here would use."""
    return _core.get_num_threads()


def active_kernel(format: str, **options: Any) -> str:
    """Name of the kernels that ``format`` runs now, such as "bf16/amx"; ``options`` as in :func:`fastffn.pack`.

    Raises:
        ValueError: an unknown format, or options that it does not have.
        RuntimeError or ValueError: FASTFFN_ISA names an instruction set that is unknown or that this CPU lacks.
    """
    return _core.active_kernel(format, options)
