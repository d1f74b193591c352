"""Errors that the report shows to its user as one clear message, without a traceback."""

from __future__ import annotations

from fastffn._files.errors import FileFormatError

__all__ = ["FileFormatError", "ReportError", "Shown", "UnsupportedModelError"]


class ReportError(Exception):
    """Something the user can act on: a missing file, no network, an unsupported model."""


class UnsupportedModelError(FileFormatError):
    """A sound model that this report cannot run whole; its feed-forward layers can still be measured."""


# What is shown so: errors of files come from their readers.
Shown = (ReportError, FileFormatError)
