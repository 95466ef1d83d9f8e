"""The questions of ``tapmesh flows``, one row each."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from broker.cli.flows_options import Asked, Question, add_capacity, add_limit, capacities, positive
from broker.core.errors import TapmeshError
from broker.core.flow_layout import FLOW_BEGAN
from broker.flows.answers.times import length_ns

if TYPE_CHECKING:
    from broker.flows.answers.answer import Answer
    from broker.flows.answers.series import Subject
    from broker.flows.answers.store import Store

# What an answer needs is imported when it is asked: the other commands of tapmesh run where DuckDB is not installed.


def _list(asked: Asked, store: Store) -> Answer:
    from broker.flows.answers.listing import listing

    return listing(store, asked.period, asked.where(), asked.limit)


_ONE = re.compile(r"[^\s()|&!]+")
_TOP_BY = ["source", "destination", "address", "conversation", "service", "protocol", "port", "name", "vlan", "input", "tunnel"]
_OF = ("bytes", "packets", "flows")


def _top_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--by", choices=_TOP_BY, default="address", help="what to put together (default: address)")
    sub.add_argument(
        "--of", default="bytes", metavar="MEASURE[,MEASURE]", help="bytes, packets, flows; ordered by the first (default: bytes)"
    )
    add_limit(20)(sub)


def _top(asked: Asked, store: Store) -> Answer:
    from broker.flows.answers.top import top

    of = asked.arguments.of.split(",")
    for name in of:
        if name not in _OF or of.count(name) > 1:
            raise TapmeshError(f"--of: '{asked.arguments.of}': expected one or more of {', '.join(_OF)}, each once")
    return top(store, asked.period, asked.where(), asked.arguments.by, of, asked.limit)


def _conversations(asked: Asked, store: Store) -> Answer:
    from broker.flows.answers.talks import conversations

    return conversations(store, asked.period, asked.where(), asked.limit)


def _services(asked: Asked, store: Store) -> Answer:
    from broker.flows.answers.talks import services

    return services(store, asked.period, asked.where(), asked.limit)


def _new_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--days", type=positive, metavar="N", help="how far back to look (default: flows.new_days of --config, or 30)")
    sub.add_argument("--unsure", action="store_true", help="also TCP flows whose beginning was not seen")
    add_limit(100)(sub)


def _new(asked: Asked, store: Store) -> Answer:
    from broker.flows.answers.new import new

    configured = asked.config.flows.new_days if asked.config and asked.config.flows else 30
    days = asked.arguments.days or configured
    return new(store, asked.period, asked.where(), days, asked.limit, unsure=asked.arguments.unsure)


def _matrix_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--by", default="sets", metavar="WHAT", help="sets, sites (of --config), or subnet/LENGTH (default: sets)")
    sub.add_argument("--of", choices=_OF, default="bytes", help="what a cell holds (default: bytes)")
    add_limit(200)(sub)


def _matrix(asked: Asked, store: Store) -> Answer:
    from broker.flows.answers.areas import areas_of_sets
    from broker.flows.answers.locality import areas_of_sites
    from broker.flows.answers.matrix import matrix, matrix_of_subnets

    by, of = asked.arguments.by, asked.arguments.of
    if by in ("sets", "sites"):
        areas = areas_of_sets(asked.sets) if by == "sets" else areas_of_sites(asked.sites, asked.sets)
        return matrix(store, asked.period, asked.where(), areas, of, by)
    word, _, length = by.partition("/")
    if word != "subnet" or not length.isascii() or not length.isdigit() or not 1 <= int(length) <= 32:
        raise TapmeshError(f"--by: '{by}': expected sets, sites or subnet/LENGTH with a length from 1 to 32 (IPv6: 64 always)")
    return matrix_of_subnets(store, asked.period, asked.where(), int(length), of, asked.limit)


def _locality(asked: Asked, store: Store) -> Answer:
    from broker.flows.answers.locality import locality

    return locality(store, asked.period, asked.where(), asked.sites, asked.sets, asked.limit)


def _utilisation_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--step", default="5m", metavar="LENGTH", help="what an average is taken over (default: 5m)")
    add_capacity(sub)


def _utilisation(asked: Asked, store: Store) -> Answer:
    from broker.flows.answers.utilisation import utilisation

    step_ns = length_ns(asked.arguments.step, "--step")
    return utilisation(store, asked.period, step_ns, _links(asked), capacities(asked.arguments.capacity))


def _links(asked: Asked) -> list[Subject]:
    from broker.flows.answers.series import subject_of

    return [subject_of(link, asked.condition(link.match, link.place) if link.match else "") for link in asked.links]


def _forecast_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("subject", metavar="NAME", help="of a link, input or tool (link:, input:, tool: before it where needed), or 'store'")
    sub.add_argument("--ahead", default="30d", metavar="LENGTH", help="how far to look (default: 30d)")
    add_capacity(sub)


def _forecast(asked: Asked, store: Store) -> Answer:
    from broker.flows.answers.forecasts import forecast

    ahead_ns = length_ns(asked.arguments.ahead, "--ahead")
    return forecast(store, asked.period, asked.arguments.subject, _links(asked), capacities(asked.arguments.capacity), ahead_ns)


def _access_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("server", metavar="SERVER", help="address, net or $set")
    sub.add_argument("--port", metavar="PORT", help="number, service or first-last")
    sub.add_argument("--parquet", metavar="FILE", help="write the rows there, the facts about them in the file's metadata")


def _access(asked: Asked, store: Store) -> Answer:
    from broker.flows.answers.access import access

    server, port = asked.arguments.server, asked.arguments.port
    for option, word in (("SERVER", server), ("--port", port or "any")):
        if not _ONE.fullmatch(word):
            raise TapmeshError(f"{option}: '{word}': expected one address, net or $set, and one port or range")
    of_server = {end: f"{end} net {server}" + (f" and {end} portrange {port}" if port else "") for end in ("dst", "src")}
    condition, turned = asked.condition(of_server["dst"]), asked.condition(of_server["src"])
    # Without a port the source of a flow that is not TCP is taken at its word: a server asks others too.
    began = f"flags & {FLOW_BEGAN} = 0" + ("" if port else " AND protocol = 6")
    name = server + (f" port {port}" if port else "")
    return access(store, asked.period, condition, name, asked.now_ns, f"({turned} AND {began})")


def _gaps(asked: Asked, store: Store) -> Answer:
    from broker.flows.answers.gaps import gaps

    return gaps(store, asked.period)


def _nothing(_: argparse.ArgumentParser) -> None:
    pass


QUESTIONS = (
    Question("list", "records as they are, newest first", add_limit(50), _list),
    Question("top", "who or what has most", _top_arguments, _top, plots=True),
    Question("conversations", "who talks to whom about what", add_limit(50), _conversations),
    Question("services", "what is served, by how many, to how many", add_limit(50), _services),
    Question("matrix", "which sets, sites or subnets talk to which", _matrix_arguments, _matrix, plots=True),
    Question("locality", "what stays within a host or rack, and who should be neighbours", add_limit(20), _locality, last="1d", plots=True),
    Question(
        "utilisation",
        "how full inputs, tools and links are",
        _utilisation_arguments,
        _utilisation,
        last="1d",
        expression=False,
        plots=True,
    ),
    Question(
        "forecast",
        "when a link, input, tool or the store will be full",
        _forecast_arguments,
        _forecast,
        last="90d",
        expression=False,
        plots=True,
    ),
    Question("new", "conversations that were never seen before", _new_arguments, _new, last="1d"),
    Question("access", "who reached a server, for an auditor", _access_arguments, _access, last="1d", expression=False, says_sampling=True),
    Question("gaps", "records that never came to the store", _nothing, _gaps, last="1d", expression=False, says_sampling=True),
)
