"""Errors that the report shows to its user as one clear message, without a traceback."""

from __future__ import annotations

from fastffn._files.errors import FileFormatError

__all__ = ["FileFormatError", "ReportError", "Shown"]


class ReportError(Exception):
    """Something the user can act on: a missing file, no network, an unsupported model."""


# What is shown so: errors of files come from their readers.
Shown = (ReportError, FileFormatError)
