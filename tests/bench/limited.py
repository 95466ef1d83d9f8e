"""Where control groups can be made."""

from __future__ import annotations

import pytest

from bench.limits import unavailable

_WHY = unavailable()
needs_limits = pytest.mark.skipif(bool(_WHY), reason=_WHY)
