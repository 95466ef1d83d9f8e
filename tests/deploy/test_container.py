"""The container file asks for no more than it says. tests/live/test_privileges.py runs what it makes, without a container engine."""

from __future__ import annotations

import re
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parents[2] / "deploy" / "container"
TEXT = (DIRECTORY / "Containerfile").read_text()


def test_the_user_is_a_number_and_not_root() -> None:
    """By number: Kubernetes' runAsNonRoot cannot look a name up."""
    users = re.findall(r"^USER (\S+)$", TEXT, re.MULTILINE)
    assert users
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])
    assert TEXT.index(f"USER {users[-1]}") > TEXT.rindex("FROM ")


def test_the_only_capability_given_is_net_raw() -> None:
    assert re.findall(r"\bsetcap (\S+)", TEXT) == ["cap_net_raw+ep"]
    assert re.findall(r"--cap-add (\w+)", TEXT) == ["NET_RAW"]
    assert "--cap-drop ALL" in TEXT
    assert "--privileged" not in TEXT
