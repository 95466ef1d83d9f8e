"""A configuration that is read, compiled and tested beside the supervisor's loop: that may take seconds, and workers can die meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable

from broker.core.errors import TapmeshError
from broker.supervisor.generation import Ready


class Loading:
    """One thread, one configuration. It dies with the process."""

    def __init__(self, load: Callable[[], Ready]) -> None:
        self._load = load
        self._ready: Ready | None = None
        self._error: BaseException = TapmeshError("not loaded yet")
        self._thread = threading.Thread(target=self._run, name="loading", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._ready = self._load()
        except BaseException as error:
            self._error = error

    def wait(self, timeout_s: float) -> bool:
        """Until it is done, at most `timeout_s`. True: it is."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def take(self) -> Ready:
        """Once it is done. Whatever `load` raised."""
        if self._ready is None:
            raise self._error
        return self._ready
