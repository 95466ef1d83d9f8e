"""The exporter with a real export: what leaves is prepared, and a collector is told what the flows stage lost."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.core.errors import TapmeshError
from broker.core.flow_model import Export, Flows
from broker.core.metrics import index
from broker.core.values import Tls
from broker.flows.export.anonymise import Anonymiser
from broker.flows.export.messages import ExportContext, Lost
from broker.flows.export.prepare import make_prepare
from broker.flows.export.sinks import Sink
from broker.flows.export.sinks import make_sink as real_make_sink
from broker.flows.exporter import Exporter
from tests.flows import feeder
from tests.flows.export.rows import some_rows
from tests.flows.feeder import Feeder, config, exports_row, make_pipeline

KEY = bytes(range(32))


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY.hex() + "\n")
    return path


def test_addresses_are_replaced_and_attributes_dropped_in_all_that_leaves(name: str, tmp_path: Path, key_file: Path) -> None:
    export = Export("lines", "json", "file", file=str(tmp_path / "flows.json"))
    pipeline = make_pipeline(name, config(None, exports=(export,), drop=("vlan", "ports"), anonymise_key_file=str(key_file)))
    rows = some_rows(200)
    exporter = Exporter(pipeline)
    Feeder(pipeline).put(rows)
    exporter.step()
    exporter.close()
    found = [json.loads(line) for line in (tmp_path / "flows.json").read_text().splitlines()]
    assert exports_row(pipeline, "lines")["records"] == len(found) == len(rows)
    expected = rows.copy()
    Anonymiser(KEY).replace(expected)
    assert not any(line.keys() & {"vlan", "community_id"} for line in found)
    for key, end in (("src_ip", "source"), ("dest_ip", "destination")):
        addresses = [row[end].tobytes()[12 if row["version"] == 4 else 0 :] for row in expected]
        assert [ipaddress.ip_address(line[key]).packed for line in found] == addresses


def test_a_key_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(TapmeshError, match=r"flows.anonymise.key_file: there is no file of that name"):
        make_prepare(Flows(anonymise_key_file=str(tmp_path / "none")))


def test_a_certificate_that_cannot_be_read_is_told(name: str, tmp_path: Path) -> None:
    tls = Tls(ca=str(tmp_path / "none.pem"))
    pipeline = make_pipeline(name, config(None, exports=(Export("far", "ipfix", "tls", "192.0.2.9", 4740, tls),)))
    with pytest.raises(TapmeshError, match=r"flows.exports.far.tls: ca '.*none.pem': No such file"):
        Exporter(pipeline)


def test_what_the_flows_stage_lost_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeder, "GEOMETRY", replace(feeder.GEOMETRY, n_flows=1))
    pipeline = make_pipeline(name, config(None, exports=(Export("x", "ipfix", address="127.0.0.1", port=9),)))
    lane = pipeline.lanes[0]
    counters = {"unmetered_cut": 3, "unmetered_skipped": 8, "unmetered_not_ip": 100, "unmetered_sampled": 1000, "dropped_records": 5,
                "dropped_record_packets": 50, "dropped_record_bytes": 5000}  # fmt: skip
    at = lane.geometry.row("flows", 0)
    for counter, value in counters.items():
        counted = lane.live[at] if counter.startswith("dropped") else lane.committed[at, 0]
        counted[index("flows", counter)] = value
    made: list[ExportContext] = []

    def make_sink(export: Export, row: Any, context: ExportContext) -> Sink:
        made.append(context)
        return real_make_sink(export, row, context)

    Exporter(pipeline, make_sink=make_sink).close()
    assert made[0].lost() == Lost(ignored_packets=11, records=5, packets=50, bytes=5000)
