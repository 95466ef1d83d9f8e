"""What can go wrong by somebody's doing. Traffic never raises; a bug in the program is not caught at all."""

from __future__ import annotations

import re
from collections.abc import Iterable

from broker.core.model import Place

EXIT_CONFIG = 78
"""sysexits EX_CONFIG: started again it would fail again, so nobody restarts it."""

EXIT_DAMAGED = 65
"""sysexits EX_DATAERR: shared memory says what cannot be, and would say it again."""


EXIT_RUNNING = 75
"""sysexits EX_TEMPFAIL: another process does this already. Once that one has ended, starting again is of use."""

_CREDENTIALS = re.compile(r"[^\s'\"/@]+:[^\s'\"@]+@")
"""``user:password@``, as some are used to write into addresses. Errors are logged, printed and sent to managers."""


class TapmeshError(Exception):
    """Told to the operator as it stands, without a traceback."""


class PipelineError(TapmeshError):
    """The shared memory of a pipeline is missing, foreign, of another version or too small."""


class DamagedError(PipelineError):
    """The shared memory of a pipeline says what nobody of it writes: something else has written there, or a bug of ours."""


class VersionError(PipelineError):
    """It is another version's, which alone can read it."""


class WorkerRunningError(PipelineError):
    """Another process is this worker."""


class ConfigErrors(TapmeshError):  # noqa: N818 - it holds all of them
    """All that is wrong with a configuration, in the order of its text: where, which part of it (``maps[0].to``), what and what was
    expected. `str()` gives a line for each. The place is None where there is no text, as in a configuration made by a program."""

    def __init__(self, errors: Iterable[tuple[Place | None, str, str]]) -> None:
        found = {(place, part, _CREDENTIALS.sub("...@", text)) for place, part, text in errors}
        self.errors = tuple(sorted(found, key=lambda e: (e[0].line, e[0].column, e[1], e[2]) if e[0] else (0, 0, e[1], e[2])))
        super().__init__(self.errors)

    def __str__(self) -> str:
        return "\n".join(": ".join(str(part) for part in error if part) for error in self.errors)
