"""What is wrong with a captured interface is told while it is, and over within a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.core.layout import SOURCE_ABSENT, SOURCE_DOWN, SOURCE_FINE, SOURCE_NO_LINK
from tests.netns import needs_root
from tests.stages.capture.support import Worker
from tests.stages.capture.test_interface import Wire, _frame, _sent, _take, _worker, wire  # noqa: F401 - a fixture
from tests.waiting import until

pytestmark = [pytest.mark.root, needs_root]


def _trouble(worker: Worker) -> int:
    return worker.count("source_trouble")


def test_an_interface_that_is_missing_or_down_at_the_start_is_waited_for(tmp_path: Path, wire: Wire) -> None:  # noqa: F811
    wire.host.ip("link", "del", wire.far)
    worker = _worker(tmp_path, wire).start()
    assert worker.step() == 0
    assert _trouble(worker) == SOURCE_ABSENT
    wire.host.ip("link", "add", wire.far, "type", "veth", "peer", "name", wire.near)
    until(lambda: worker.step() == 0 and _trouble(worker) == SOURCE_DOWN, "word that it is there, and down", 1.0)
    for end in (wire.far, wire.near):
        wire.host.ip("link", "set", end, "up")
    until(lambda: _sent(wire, _frame(2)) and worker.step(), "a packet after the interface came up", 1.0)
    assert _trouble(worker) == SOURCE_FINE


def test_what_is_wrong_with_an_interface_is_told_while_it_is(tmp_path: Path, wire: Wire) -> None:  # noqa: F811
    """Down, and no link because the far end is down; each within a second, there and back. An idle link that works is no trouble."""
    worker = _worker(tmp_path, wire).start()
    for end, trouble in ((wire.near, SOURCE_DOWN), (wire.far, SOURCE_NO_LINK)):
        wire.host.ip("link", "set", end, "down")
        until(lambda trouble=trouble: worker.step() == 0 and _trouble(worker) == trouble, f"trouble {trouble}", 1.0)  # type: ignore[misc]
        wire.host.ip("link", "set", end, "up")
        until(lambda: worker.step() == 0 and _trouble(worker) == SOURCE_FINE, "an end of the trouble", 1.0)


def test_a_renamed_interface_is_captured_until_another_takes_the_name(tmp_path: Path, wire: Wire) -> None:  # noqa: F811
    worker = _worker(tmp_path, wire).start()
    wire.host.ip("link", "set", wire.near, "name", "tm-other")  # since Linux 6.1 also while it is up
    wire.send(_frame(1))
    _take(worker, 1)
    until(lambda: worker.step() == 0 and _looked(worker) == "tm-other", "the new name seen", 1.0)
    assert _trouble(worker) == SOURCE_FINE
    other = Wire(wire.host, far="tm-far2")
    other.make()
    until(lambda: _sent(other, _frame(2)) and worker.step(), "a packet from the one that has the name now", 2.0)
    assert worker.records[-1].data == _frame(2)[:18] + worker.records[-1].data[18:]
    assert _trouble(worker) == SOURCE_FINE


def _looked(worker: Worker) -> str:
    return str(worker.capture._source._name)


def test_a_changed_mtu_changes_nothing_for_capture(tmp_path: Path, wire: Wire) -> None:  # noqa: F811
    worker = _worker(tmp_path, wire).start()
    sizes = (60_000, 1500, 65_000)
    for n, mtu in enumerate(sizes):
        for end in (wire.far, wire.near):
            wire.host.ip("link", "set", end, "mtu", str(mtu))
        wire.send(_frame(n, mtu + 14))
        _take(worker, n + 1)
    assert [r.wirelen for r in worker.records] == [mtu + 14 for mtu in sizes]
    assert _trouble(worker) == SOURCE_FINE
