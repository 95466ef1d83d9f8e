"""Measurements, printed as JSON lines: ``python -m bench [NAME...] [--quick]``. A peer is measured in the same run."""
