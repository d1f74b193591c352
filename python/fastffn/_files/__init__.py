"""Readers of model files, for the importers and the report. Need NumPy only."""
