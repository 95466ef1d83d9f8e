"""A test of an expression as SQL over the columns of a stored record. Pure text.

Addresses are compared as ranges of their two numbers, ports and the rest as ranges of one, so that DuckDB leaves out row groups by their
least and largest values. What is not a number goes through `quoted`; nothing else of the operator's text gets here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from broker.config.policy import tree
from broker.config.policy.fields import is_range
from broker.config.policy.names import SCTP, TCP, UDP
from broker.config.policy.tree import IP, IP6, Node, Ranges

TRUE, FALSE = "true", "false"
ENDS = ("source", "destination")
_PORT_PROTOCOLS = {TCP: 6, UDP: 17, SCTP: 132}
_ETHERTYPES = {0x0800: 4, 0x86DD: 6}
_LOW = (1 << 64) - 1
_FIELDS = {tree.DSCP: "tos // 4", tree.ECN: "tos % 4", tree.TTL: "ttl", tree.L4_PROTOCOL: "protocol"}
_MULTICAST = {IP: ((0xE0000000, 0xEFFFFFFF),), IP6: ((0xFF << 120, (1 << 128) - 1),)}


@dataclass(frozen=True, slots=True)
class Condition:
    """A test that only records have, already SQL."""

    sql: str


class NotRecorded(Exception):  # noqa: N818 - it says what is the matter
    """The test asks for what records do not say; the reason."""


def quoted(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


def within(column: str, ranges: Ranges) -> str:
    return any_of(f"{column} = {first}" if first == last else f"{column} BETWEEN {first} AND {last}" for first, last in ranges)


def any_of(parts: Iterable[str]) -> str:
    found = list(parts)
    return found[0] if len(found) == 1 else "(" + " OR ".join(found) + ")" if found else FALSE


def all_of(parts: Iterable[str]) -> str:
    found = list(parts)
    return found[0] if len(found) == 1 else "(" + " AND ".join(found) + ")" if found else TRUE


def address4(end: str, ranges: Ranges) -> str:
    return all_of(["version = 4", within(f"{end}_low", ranges)])


def address6(end: str, ranges: Ranges) -> str:
    return all_of(["version = 6", any_of(_range6(end, first, last) for first, last in ranges)])


def _range6(end: str, first: int, last: int) -> str:
    high, low = f"{end}_high", f"{end}_low"
    (high1, low1), (high2, low2) = (first >> 64, first & _LOW), (last >> 64, last & _LOW)
    if high1 == high2:
        return all_of([f"{high} = {high1}", *([] if (low1, low2) == (0, _LOW) else [within(low, ((low1, low2),))])])
    parts = [f"{high} BETWEEN {high1} AND {high2}"]
    if low1:
        parts.append(f"({high} > {high1} OR {low} >= {low1})")
    if low2 != _LOW:
        parts.append(f"({high} < {high2} OR {low} <= {low2})")
    return all_of(parts)


def condition(node: Node) -> str:
    """NotRecorded says why there is none."""
    match node:
        case Condition():
            return node.sql
        case tree.Not():
            return f"(NOT {condition(node.item)})"
        case tree.And():
            return all_of(condition(item) for item in node.items)
        case tree.Or():
            return any_of(condition(item) for item in node.items)
        case tree.EtherType() if node.value in _ETHERTYPES:
            return f"version = {_ETHERTYPES[node.value]}"
        case tree.EtherType() | tree.Llc():
            raise NotRecorded("records are of IPv4 and IPv6 packets only")
        case tree.Protocol():
            return all_of([*_version(node.kinds), f"protocol = {node.value}"])
        case tree.Port():
            numbers = [number for bit, number in _PORT_PROTOCOLS.items() if node.protocols & bit]
            protocols = any_of(f"protocol = {number}" for number in numbers)
            return all_of([protocols, within(f"{ENDS[node.side]}_port", node.ranges)])
        case tree.Address4():
            _of_ip(node.kinds)
            if is_range(node.mask):
                return address4(ENDS[node.side], ((node.net, node.net | ~node.mask & 0xFFFFFFFF),))
            return all_of(["version = 4", f"({ENDS[node.side]}_low & {node.mask}) = {node.net}"])
        case tree.Address4Set():
            _of_ip(node.kinds)
            return address4(ENDS[node.side], node.ranges)
        case tree.Address6():
            return address6(ENDS[node.side], ((node.net, node.net | (1 << 128 - node.prefix) - 1),))
        case tree.Address6Set():
            return address6(ENDS[node.side], node.ranges)
        case tree.Multicast():
            return (address4 if node.kind == IP else address6)(ENDS[tree.DESTINATION], _MULTICAST[node.kind])
        case tree.Field() if node.field in _FIELDS:
            return all_of([*_version(node.kinds), within(f"({_FIELDS[node.field]})", node.ranges)])
        case tree.Mac() | tree.MacGroup():
            raise NotRecorded("records have no Ethernet addresses")
        case tree.Length():
            raise NotRecorded("a record is of many packets: write 'bytes' and a comparison, which is about all of them")
        case tree.ProtoChain():
            raise NotRecorded("records have the protocol behind all extension headers only: write 'proto'")
        case _:
            raise NotRecorded("records do not say that")


def _version(kinds: int) -> list[str]:
    both = IP | IP6
    return [] if kinds & both == both else [f"version = {4 if kinds & IP else 6}"]


def _of_ip(kinds: int) -> None:
    if not kinds & IP:
        raise NotRecorded("records are of IPv4 and IPv6 packets only")
