"""What can go wrong by somebody's doing. Traffic never raises; a bug in the program is not caught at all."""

from __future__ import annotations

EXIT_CONFIG = 78
"""sysexits EX_CONFIG: started again it would fail again, so nobody restarts it."""


class TapmeshError(Exception):
    """Told to the operator as it stands, without a traceback."""


class PipelineError(TapmeshError):
    """The shared memory of a pipeline is missing, foreign, of another version or too small."""
