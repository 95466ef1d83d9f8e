"""/metrics is what Prometheus' own parser reads, and says what the counters say."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from broker.core.errors import TapmeshError
from broker.core.layout import TOOL_ALIVE, TOOL_DEAD, Geometry
from broker.core.metrics import COUNTERS
from broker.core.shm import Pipeline, create_pipeline
from broker.supervisor.exposition import exposition, metric_name
from broker.supervisor.http import HttpServer, parse_address
from broker.supervisor.ledger import balance
from broker.supervisor.rule_counts import RuleCount
from broker.supervisor.snapshot import Names, Reader
from tests.supervisor.rings import NAMES, capture_block, count, count_live, judge_block


def samples(pipeline: Pipeline, names: Names = NAMES) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    snapshot = Reader(pipeline).take(names)
    families = list(text_string_to_metric_families(exposition(snapshot, balance(snapshot))))
    assert len({f.name for f in families}) == len(families)
    return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def labelled(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def test_every_counter_of_the_table_is_there_with_its_help(name: str, geometry: Geometry):
    pipeline = create_pipeline(name, [replace(geometry, n_flows=1)])
    snapshot = Reader(pipeline).take(NAMES)
    page = exposition(snapshot, balance(snapshot))
    families = {f.name: f for f in text_string_to_metric_families(page)}
    for counter in COUNTERS:
        family = families[metric_name(counter).removesuffix("_total")]
        assert counter.help in family.documentation
        assert family.samples


def test_committed_and_live_counters_show_by_worker_and_slot(pipeline: Pipeline):
    lane = pipeline.lanes[0]
    judge_block(lane, capture_block(lane, 3), [1, 1, 0])
    count_live(lane, "capture", "dropped_kernel", 7)
    count_live(lane, "send", "busy_ns", 99)
    found = samples(pipeline)
    at = {"lane": "0", "worker": "0"}
    assert found["tapmesh_capture_captured_packets_total", labelled(stage="capture", input="span", **at)] == 3
    assert found["tapmesh_capture_dropped_kernel_total", labelled(stage="capture", input="span", **at)] == 7
    assert found["tapmesh_filter_wanted_frames_total", labelled(stage="filter", tool="ids", **at)] == 2
    assert found["tapmesh_filter_wanted_frames_total", labelled(stage="filter", tool="recorder", **at)] == 0
    assert found["tapmesh_busy_ns_total", labelled(stage="send", **at)] == 99
    assert found["tapmesh_in_flight_frames", labelled(tool="ids")] == 2
    assert found["tapmesh_ledger_balanced", frozenset()] == 1


def test_a_broken_ledger_shows_and_by_how_much(pipeline: Pipeline):
    count(pipeline.lanes[0], "send", "delivered_frames", 5)
    found = samples(pipeline)
    assert found["tapmesh_ledger_balanced", frozenset()] == 0
    assert found["tapmesh_ledger_tool_off_by", labelled(tool="ids")] == -5


def test_tools_that_are_asked_show_whether_they_are_there_and_others_do_not_show(pipeline: Pipeline):
    assert not [name for name, _ in samples(pipeline) if name == "tapmesh_tool_alive"]
    names = Names(tools={0: "ids", 1: "ids@web", 2: "group all", 3: "zeek", 4: "arkime"})
    pipeline.tool_state[[0, 3]] = TOOL_DEAD, TOOL_ALIVE
    found = {labels: value for (name, labels), value in samples(pipeline, names).items() if name == "tapmesh_tool_alive"}
    assert found == {labelled(tool="ids"): 0, labelled(tool="zeek"): 1}


def with_rules(pipeline: Pipeline, *rules: RuleCount) -> str:
    snapshot = replace(Reader(pipeline).take(NAMES), rules=rules)
    return exposition(snapshot, balance(snapshot))


def test_rules_are_numbered_in_their_map_and_expressions_are_no_labels(pipeline: Pipeline):
    page = with_rules(pipeline, RuleCount("web", "drop", "tcp port 22", 3, 300, 1), RuleCount("web", "pass", "tcp", 4, 400, 0))
    found = {(s.name, frozenset(s.labels.items())): s.value for f in text_string_to_metric_families(page) for s in f.samples}
    first, second = labelled(map="web", rule="1", action="drop"), labelled(map="web", rule="2", action="pass")
    for what, counts in (("packets", (3, 4)), ("bytes", (300, 400)), ("undetermined_packets", (1, 0))):
        assert (found[f"tapmesh_rule_{what}_total", first], found[f"tapmesh_rule_{what}_total", second]) == counts


def test_more_rules_than_anybody_wants_to_scrape_are_left_out_and_the_page_says_so(pipeline: Pipeline):
    rules = [RuleCount("web", "pass", "tcp", 1, 1, 0)] * 1001
    assert with_rules(pipeline, *rules[1:]).count("\ntapmesh_rule_packets_total{") == 1000
    page = with_rules(pipeline, *rules)
    assert "\n# 1001 rules are too many to be listed here (at most 1000): tapmesh status --rules\n" in page
    assert not [f for f in text_string_to_metric_families(page) if f.name.startswith("tapmesh_rule_")]


def test_names_are_escaped(pipeline: Pipeline):
    odd = 'a "quoted"\\\nname'
    found = samples(pipeline, Names(tools={0: odd}))
    assert ("tapmesh_in_flight_frames", labelled(tool=odd)) in found


@pytest.fixture
def server() -> Iterator[tuple[HttpServer, dict[str, list[str]]]]:
    says: dict[str, list[str]] = {"health": [], "ready": []}
    made = HttpServer("127.0.0.1:0", lambda: "x 1\n", lambda: says["health"], lambda: says["ready"])
    made.start()
    yield made, says
    made.close()


def ask(server: HttpServer, path: str, method: str = "GET") -> tuple[int, str, str]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers["Content-Type"]


def test_health_and_readiness_answer_in_words(server: tuple[HttpServer, dict[str, list[str]]]):
    made, says = server
    assert ask(made, "/healthz")[:2] == (200, "ok\n")
    assert ask(made, "/metrics") == (200, "x 1\n", "text/plain; version=0.0.4; charset=utf-8")
    says["health"] = ["filter[0.0] is down", "no link"]
    assert ask(made, "/healthz")[:2] == (503, "filter[0.0] is down\nno link\n")
    assert ask(made, "/readyz?verbose")[0] == 200
    says["ready"] = ["starting"]
    assert ask(made, "/readyz")[:2] == (503, "starting\n")
    assert ask(made, "/nothing")[0] == 404
    assert ask(made, "/healthz", "HEAD")[:2] == (503, "")
    assert ask(made, "/metrics", "POST")[0] == 501


@pytest.mark.parametrize("text", ["", "9130", "localhost:9130", "127.0.0.1:", "127.0.0.1:70000", "127.0.0.1:-1", "[::1]", "1.2.3:9"])
def test_an_address_that_is_none_is_told(text: str):
    with pytest.raises(TapmeshError, match=r"http: .*expected"):
        parse_address(text)


def test_addresses_of_both_families_are_read():
    assert parse_address("0.0.0.0:9130")[:2] == ("0.0.0.0", 9130)
    assert parse_address("[::1]:9130")[:2] == ("::1", 9130)
