"""Our own words, beside those of pcap-filter(7): what each of them is followed by, and what it means.

    word ──> the function that reads what follows ──> a tree

libpcap refuses all of them where they stand here (as the name of no host, or as no sentence), so nothing that it takes means anything else
to us. README.md has them in a table. A word is about the layer where it stands, as any other: ``vlan and dscp ef``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from broker.config.policy import inner, link, payload, tree, values
from broker.config.policy.errors import PolicyError
from broker.config.policy.names import PROTOCOLS
from broker.config.policy.sets import merge
from broker.config.policy.tree import IP, IP6, VLAN, And, Node, Or, Ranges
from broker.config.policy.values import Numbers

if TYPE_CHECKING:
    from broker.config.policy.parser import Parser

_CS = {f"cs{n}": 8 * n for n in range(8)}
_AF = {f"af{n}{drop}": 8 * n + 2 * drop for n in range(1, 5) for drop in range(1, 4)}
_DSCP = {**_CS, **_AF, "ef": 46, "be": 0, "df": 0, "le": 1, "voice-admit": 44}  # RFC 2474, 2597, 3246, 8622, 5865
_ECN = {"not-ect": 0, "ect1": 1, "ect0": 2, "ce": 3}  # RFC 3168
_FRAGMENT = {"none": tree.NOT_FRAGMENTED, "first": tree.FIRST, "later": tree.LATER, "atomic": tree.ATOMIC}
_EXTENSIONS = {
    "hopopts": 0, "routing": 43, "fragment": 44, "esp": 50, "ah": 51, "dstopts": 60, "mobility": 135, "hip": 139, "shim6": 140,
}  # fmt: skip
_FLAGS = {name: 1 << bit for bit, name in enumerate(("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"))}
_TCP = 6

_PCP, _DEPTH = Numbers("priority", 7), Numbers("the number of tags", tree.MAX_TAGS)
_VLAN = Numbers("VLAN", 4095)
_LENGTH = Numbers("length", (1 << 32) - 1)


@dataclass(frozen=True, slots=True)
class _Field:
    field: int
    kinds: int
    numbers: Numbers
    default: Ranges = ()  # what the word alone means


_FIELDS = {
    "dscp": _Field(tree.DSCP, IP | IP6, Numbers("DSCP", 63, _DSCP)),
    "ecn": _Field(tree.ECN, IP | IP6, Numbers("ECN", 3, _ECN)),
    "ttl": _Field(tree.TTL, IP | IP6, Numbers("TTL", 255)),
    "flowlabel": _Field(tree.FLOW_LABEL, IP6, Numbers("flow label", 0xFFFFF)),
    "fragment": _Field(tree.FRAGMENT, IP | IP6, Numbers("fragment state", 3, _FRAGMENT), ((tree.FIRST, tree.LATER),)),
    "ext": _Field(tree.EXTENSION, IP6, Numbers("IPv6 extension header", 140, _EXTENSIONS)),
    "l4": _Field(tree.L4_PROTOCOL, IP | IP6, Numbers("protocol", 255, PROTOCOLS)),
}
_KINDS = {"ip": IP, "ip6": IP6}


def test(p: Parser) -> Node | None:
    """Of one of our words, if it stands here."""
    found = _reader(p, 0)
    return found(p) if found else None


def stands(p: Parser, ahead: int) -> bool:
    return _reader(p, ahead) is not None


def _reader(p: Parser, ahead: int) -> Callable[[Parser], Node] | None:
    token, following = p.peek(ahead), p.peek(ahead + 1)
    if token.escaped or following.escaped or following.text == "[":
        return None
    if token.kind == "name":
        return _STARTS.get(token.text)
    if token.kind != "word":
        return None
    if token.text in _KINDS and following.kind == "name" and following.text in _FIELDS:
        return _field
    if (token.text, following.text) == ("tcp", "flags"):
        return _tcp_flags
    if token.text == "len" and (following.text == "{" or (following.kind == "name" and "-" in following.text)):
        return _length
    return None


def _field(p: Parser) -> Node:
    kinds = _KINDS[p.next().text] if p.peek().kind == "word" else IP | IP6
    start = p.next()
    known = _FIELDS[start.text]
    if not kinds & known.kinds:
        raise PolicyError(f"there is no '{start.text}' in IPv4", start.at)
    at = p.peek().at
    found = known.default if known.default and not values.is_next(p, known.numbers) else p.numbers(known.numbers)
    if known.field == tree.EXTENSION:
        _only_extensions(found, at)
    return tree.Field(p.layer, known.field, kinds & known.kinds, found) if found else Or(())


def _only_extensions(found: Ranges, at: int) -> None:
    for value in (value for first, last in found for value in range(first, last + 1)):
        if value not in _EXTENSIONS.values():
            raise PolicyError(f"{value} is no IPv6 extension header: expected {', '.join(_EXTENSIONS)} or their numbers", at)


# ---- TCP flags


def _tcp_flags(p: Parser) -> Node:
    p.next()
    p.next()
    wanted, mask = wanted_flags(p)
    return tree.Detail(p.layer, IP | IP6, _TCP, merge([(v, v) for v in range(256) if v & mask == wanted]))


def wanted_flags(p: Parser) -> tuple[int, int]:
    """``syn,ack``: all of these are set. ``syn/syn,ack``: of the flags behind ``/`` just those before it.

    Returns their bits and the bits asked for."""
    at = p.peek().at
    wanted = mask = _flag_list(p)
    if p.is_mark("/"):
        p.next()
        mask = _flag_list(p)
        if wanted & ~mask:
            raise PolicyError("a flag before '/' is not among those behind it", at)
    if mask == 0:
        raise PolicyError("no flag is asked for: write '0/0xff' for none at all", at)
    return wanted, mask


def _flag_list(p: Parser) -> int:
    found = 0
    while True:
        token = p.peek()
        if token.kind == "number" and token.value < 256:
            found |= token.value
        elif token.text in _FLAGS:
            found |= _FLAGS[token.text]
        else:
            raise p.unexpected(f"{', '.join(_FLAGS)} or a number up to 255")
        p.next()
        if not p.is_mark(","):
            return found
        p.next()


# ---- tags, lengths


def vlan(p: Parser) -> Node:
    """pcap-filter's, and: ranges, sets, priority; ``vlan depth N`` counts tags and moves nothing."""
    token = p.next()
    if p.is_name("depth"):
        p.next()
        return _tags(p)
    test = link.vlan(p.layer, token.at)
    layer, items = p.layer, [test]
    if p.is_mark("("):
        number = p.grouped_number()
        if number.value > _VLAN.top:
            raise PolicyError(f"VLAN {number.value} is above {_VLAN.top}", number.at)
        items.append(tree.VlanId(layer, ((number.value, number.value),)))
    elif values.is_next(p, _VLAN):
        found = p.numbers(_VLAN)
        items.append(tree.VlanId(layer, found) if found else Or(()))
    if p.is_name("pcp"):
        p.next()
        items.append(tree.Field(layer, tree.PCP, 0, p.numbers(_PCP)))
    p.layer = link.add_step(layer, VLAN, token.at)
    return And(tuple(items)) if len(items) > 1 else test


def _tags(p: Parser) -> Node:
    layer = p.layer
    while layer and layer[-1] == VLAN:
        layer = layer[:-1]
    return tree.Field(layer, tree.TAGS, 0, p.numbers(_DEPTH))


def _pcp(p: Parser) -> Node:
    """Of the tag that was just stepped over, or of the one that comes next."""
    p.next()
    return tree.Field(p.layer[:-1] if p.layer[-1:] == (VLAN,) else p.layer, tree.PCP, 0, p.numbers(_PCP))


def _length(p: Parser) -> Node:
    p.next()
    found = tuple(tree.Length(first, last) for first, last in p.numbers(_LENGTH))
    return found[0] if len(found) == 1 else Or(found)


_STARTS: dict[str, Callable[[Parser], Node]] = {
    **{word: _field for word in _FIELDS if word != "ext"},
    "pcp": _pcp,
    "payload": payload.begins,
    "inner": inner.inner,
}
WORDS = frozenset((*_STARTS, *_FLAGS, *_FRAGMENT, *_EXTENSIONS, *inner.WORDS, "ext", "flags", "depth", "begins"))
"""All of them, for suggestions."""
