"""The error of files that cannot be read."""

from __future__ import annotations


class FileFormatError(ValueError):
    """A model file that is damaged, truncated, foreign, or of an unsupported kind."""
