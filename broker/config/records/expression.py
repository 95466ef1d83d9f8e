"""Expressions on records: tcpdump's language where a record can answer, and words that only records have.

    host 10.1.0.5 and tcp dst port 443        src net $web and not dst net $web        flags syn/syn,ack and name "*.example.com"

The grammar is the policy's own (`broker.config.policy`), so that what joins to what is tcpdump's. `src` and `dst` are the source and the
destination of the flow; without them either will do. A tag does not matter unless it is asked for: ``tcp`` is of tagged flows too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from broker.config.policy import inner, own, values
from broker.config.policy.cursor import A_TEST
from broker.config.policy.errors import PolicyError
from broker.config.policy.ids import Ids, Qualifiers
from broker.config.policy.lexer import scan
from broker.config.policy.parser import MAX_CHARACTERS, Parser
from broker.config.policy.refused import REFUSED
from broker.config.policy.sets import Elements
from broker.config.policy.tree import Node
from broker.config.policy.values import RELATIONS, Numbers
from broker.config.records.conditions import Condition, NotRecorded, all_of, any_of, condition, quoted, within

_VLAN = Numbers("VLAN", 4095)
_RTT = "(rtt_source_us::BIGINT + rtt_destination_us)"
_COUNTS = {"": 1, "k": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_TIMES = {"us": 1, "ms": 1000, "s": 1_000_000, "m": 60_000_000, "h": 3_600_000_000}
_AMOUNTS: dict[str, tuple[str, str, Mapping[str, int]]] = {
    # word: (of the source, of the destination, units)
    "bytes": ("bytes", "bytes_back", _COUNTS),
    "packets": ("packets", "packets_back", _COUNTS),
    "retransmitted": ("retransmitted::BIGINT", "retransmitted_back", _COUNTS),
    "duration": ("((last_ns - first_ns) // 1000)", "", _TIMES),
    "rtt": ("rtt_source_us", "rtt_destination_us", _TIMES),
}
_NO_BYTES = "records do not have the bytes of packets: write 'bytes', 'flags', 'ttl' and the like"
_REFUSED = {
    "inner": "a record is of one layer: write 'tunnel' and its kind, and the rest beside it",
    "payload": _NO_BYTES,
    "flows": "a record is of one flow: 'top --of flows' counts them",
    **dict.fromkeys(("mpls", "pppoes", "pppoed", "geneve", "llc"), "records do not say that: write 'tunnel' for what carried the flow"),
    "byte": _NO_BYTES,
    "len": _NO_BYTES,
    "less": "a record is of many packets: write 'bytes < N'",
    "greater": "a record is of many packets: write 'bytes > N'",
}


@dataclass(slots=True)
class RecordParser(Parser):
    """One expression, once, as `Parser`; its tests are Conditions, or such that `condition` can say."""

    def primitive(self) -> tuple[Node, Qualifiers | None]:
        token = self.peek()
        reader = _reader(self, 0)
        if reader is not None:
            return cast("Node", Condition(reader(self))), None
        if token.text in _REFUSED and token.kind in ("name", "word"):
            raise PolicyError(f"'{token.text}': {_REFUSED[token.text]}", token.at)
        if token.kind == "name" and not token.escaped and token.text not in own.WORDS:
            raise self.unexpected(A_TEST)
        node, qualifiers = super(RecordParser, self).primitive()
        try:
            condition(node)
        except NotRecorded as reason:
            raise PolicyError(f"'{token.text}': {reason}", token.at) from None
        return node, qualifiers

    def relation(self) -> Node:
        raise PolicyError(_NO_BYTES, self.peek().at)

    def id_is_next(self) -> bool:
        ahead = 0
        while (token := self.peek(ahead)).text in ("not", "(") and token.kind in ("word", "mark"):
            ahead += 1
        if _reader(self, ahead) is not None or (token.kind == "name" and token.text in _REFUSED):
            return False
        return super(RecordParser, self).id_is_next()


def where(text: str, sets: Mapping[str, Elements]) -> str:
    """The expression as a condition of SQL over the columns `broker.flows.columns.FLOWS`; empty: all records. PolicyError has the place."""
    if len(text) > MAX_CHARACTERS:
        raise PolicyError(f"{REFUSED['long']}: {len(text):,} characters, at most {MAX_CHARACTERS:,}", 0)
    return condition(RecordParser(scan(text), ids=Ids(sets)).parse())


# ---- words that only records have


def _reader(p: RecordParser, ahead: int) -> Callable[[RecordParser], str] | None:
    token, following = p.peek(ahead), p.peek(ahead + 1)
    if token.escaped or token.kind not in ("name", "word"):
        return None
    if token.text in ("src", "dst"):
        return _sided if following.kind == "name" and following.text in _SIDED else None
    if (token.text, following.text) == ("tcp", "flags"):
        return _tcp_flags
    return _WORDS.get(token.text)


def _sided(p: RecordParser) -> str:
    """`src flags`, `dst bytes`: what came from that end."""
    side = 0 if p.next().text == "src" else 1
    if p.is_name("flags"):
        return _flags(p, side)
    return _amount(p, side)


def _tcp_flags(p: RecordParser) -> str:
    p.next()
    return _flags(p)


def _flags(p: RecordParser, side: int = -1) -> str:
    p.next()
    wanted, mask = own.wanted_flags(p)
    seen = ("tcp_flags", "tcp_flags_back", "(tcp_flags | tcp_flags_back)")[side]
    return f"(protocol = 6 AND ({seen} & {mask}) = {wanted})"


def _amount(p: RecordParser, side: int = -1) -> str:
    start = p.next()
    forward, back, units = _AMOUNTS[start.text]
    if not p.is_mark(*RELATIONS):
        raise p.unexpected("=, !=, <, <=, > or >=")
    relation = p.next().text
    value = _quantity(p, units)
    column = (forward, back, f"({forward} + {back})" if back else forward)[side]
    if start.text == "rtt":  # 0 is not seen
        column = _RTT if side < 0 else column
        return f"({column} > 0 AND {column} {relation} {value})"
    return f"{column} {relation} {value}"


def _quantity(p: RecordParser, units: Mapping[str, int]) -> int:
    """A whole number and a unit: 10M, 500ms. Times without one are seconds."""
    token = p.peek()
    digits = token.text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
    unit = token.text[len(digits) :]
    if token.kind not in ("number", "name") or not (digits.isascii() and digits.isdigit()) or len(digits) > 18:
        raise p.unexpected(f"a whole number, and a unit if you like: {', '.join(u for u in units if u)}")
    scale = units.get(unit or ("" if "" in units else "s"))
    if scale is None:
        raise PolicyError(f"unknown unit '{unit}', expected one of {', '.join(u for u in units if u)}", token.at)
    p.next()
    return int(digits) * scale


def _vlan(p: RecordParser) -> str:
    p.next()
    if p.is_mark("("):
        number = p.grouped_number()
        if number.value > _VLAN.top:
            raise PolicyError(f"VLAN {number.value} is above {_VLAN.top}", number.at)
        return within("vlan", ((number.value, number.value),))
    if p.is_name("pcp") or p.is_name("depth"):
        raise PolicyError(f"'vlan {p.peek().text}': records have the id of the outermost tag only", p.peek().at)
    return within("vlan", p.numbers(_VLAN)) if values.is_next(p, _VLAN) else "vlan > 0"


def _tunnel(p: RecordParser) -> str:
    p.next()
    token = p.peek()
    if token.kind not in ("name", "word") or token.escaped or token.text not in inner.TUNNELS:
        return "tunnel <> ''"
    p.next()
    _, word, numbers = inner.TUNNELS[token.text]
    wanted = inner.ids(p, word, numbers) if numbers else None
    kind = f"tunnel = {quoted(token.text)}"
    return kind if wanted is None else all_of([kind, within("tunnel_id", wanted)])


def _text(p: RecordParser, what: str) -> str:
    """The one word behind ours, whatever it is to tcpdump."""
    p.next()
    if p.is_mark("{"):
        return any_of(f"{what} = {quoted(name)}" for name in p.braces(lambda: _word(p, what)))
    return f"{what} = {quoted(_word(p, what))}"


def _word(p: RecordParser, what: str) -> str:
    token = p.peek()
    if token.kind not in ("name", "word", "text", "number", "address4", "address6", "mac"):
        raise p.unexpected(
            {"name": "a name, in quotes if '*' is in it", "input": "the name of an input"}.get(what, f"the name of a {what}")
        )
    return p.next().text


def _name(p: RecordParser) -> str:
    """Names are stored in lower case; ``*`` stands for any number of characters, ``?`` for one."""
    p.next()
    text = _word(p, "name").lower()
    if not any(c in text for c in "*?"):
        return f"name = {quoted(text)}"
    pattern = "".join({"*": "%", "?": "_", "%": "\\%", "_": "\\_", "\\": "\\\\"}.get(c, c) for c in text)
    return f"name LIKE {quoted(pattern)} ESCAPE '\\'"


def _unanswered(p: RecordParser) -> str:
    p.next()
    return "packets_back = 0"


_SIDED = frozenset(("flags", "bytes", "packets", "retransmitted", "rtt"))
_WORDS: dict[str, Callable[[RecordParser], str]] = {
    "vlan": _vlan,
    "tunnel": _tunnel,
    "input": lambda p: _text(p, "input"),
    "node": lambda p: _text(p, "node"),
    "name": _name,
    "flags": _flags,
    "unanswered": _unanswered,
    **dict.fromkeys(_AMOUNTS, _amount),
}
