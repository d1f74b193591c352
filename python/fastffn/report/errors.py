"""Errors that the report shows to its user as one clear message, without a traceback."""

from __future__ import annotations


class ReportError(Exception):
    """Something the user can act on: a missing file, no network, an unsupported model."""


class FileFormatError(ReportError):
    """A model file that is damaged, truncated, foreign, or of an unsupported kind."""


class UnsupportedModelError(FileFormatError):
    """A sound model that this report cannot run whole; its feed-forward layers can still be measured."""
