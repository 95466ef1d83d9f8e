"""The words of an expression, cut as libpcap's scanner cuts them, and ours: ``$name``, braces, commas, text in quotes.

The longest match wins: ``fe80::1`` is one address, ``0:2`` three words, ``len-1`` the name of a host. What nothing matches becomes a `bad`
token, so that an error left of it is told first.
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Literal, NamedTuple

from broker.config.policy.names import CONSTANTS

Kind = Literal["word", "number", "address4", "address6", "mac", "name", "set", "text", "mark", "bad", "end"]

_WORDS = """
src dst host net port portrange proto protochain mask and or not less greater byte len length broadcast multicast
vlan mpls pppoed pppoes geneve llc ether link ip ip6 arp rarp tcp udp sctp icmp icmp6 igmp igrp pim vrrp carp ah esp
decnet lat sca mopdl moprc atalk aarp ipx stp netbeui iso clnp esis es-is isis is-is l1 l2 iih lsp snp csnp psnp fddi tr wlan ppp slip
"""
WORDS = frozenset(_WORDS.split())
_ALIASES = {
    "&&": "and", "||": "or", "!": "not", "length": "len", "==": "=", "carp": "vrrp", "es-is": "esis", "is-is": "isis",
    **dict.fromkeys(("link", "fddi", "tr", "wlan", "ppp", "slip"), "ether"),
}  # fmt: skip

_TOKEN = re.compile(
    r"[ \t\r\n]*(?:"
    r"(?P<run>[A-Za-z0-9](?:[-_.A-Za-z0-9]*[.A-Za-z0-9])?)"
    r"|\$(?P<set>[A-Za-z0-9_][A-Za-z0-9_.-]*)"
    r"|\\(?P<escaped>[^ !()\n\t]+)"
    r'|"(?P<text>(?:[^"\\]|\\.)*)"'
    r"|(?P<mark>&&|\|\||>=|<=|!=|==|<<|>>|[-+*/%:\[\]!<>()&|^={},])"
    r"|(?P<end>\Z)"
    r"|(?P<bad>.))",
    re.DOTALL,
)
_NUMBER = re.compile(r"0[xX][0-9A-Fa-f]+|[0-9]+")
_ADDRESS4 = re.compile(r"[0-9]+(?:\.[0-9]+){1,3}")
_B = "[0-9A-Fa-f]{1,2}"
_MAC = re.compile(
    rf"{_B}(?::{_B}){{5}}|{_B}(?:-{_B}){{5}}|{_B}(?:\.{_B}){{5}}|[0-9A-Fa-f]{{4}}(?:\.[0-9A-Fa-f]{{4}}){{2}}|[0-9A-Fa-f]{{12}}"
)
_COLONS = re.compile(rf"{_B}:+(?:{_B}:+)+")
_HEXTET = re.compile(r"[0-9A-Fa-f]{1,4}")
_QUAD = re.compile(r"(?:0[xX][0-9A-Fa-f]+|[0-9]+)(?:\.(?:0[xX][0-9A-Fa-f]+|[0-9]+)){3}")


class Token(NamedTuple):
    """`text` is the word in its one spelling, the name, or for `bad` what is wrong; `value` the number or the address (-1: no IPv4 one)."""

    kind: Kind
    text: str
    at: int
    value: int = 0
    bits: int = 0  # of a partial IPv4 address
    escaped: bool = False

    def shown(self) -> str:
        return "the end" if self.kind == "end" else f"'{self.text}'"


def scan(text: str) -> list[Token]:
    """All tokens, an `end` token last."""
    tokens = []
    at = 0
    while True:
        match = _TOKEN.match(text, at)
        assert match is not None  # the last alternative takes anything
        group = match.lastgroup or "bad"
        value, start, at = match.group(group), match.start(group), match.end()
        if group == "end":
            tokens.append(Token("end", "", len(text)))
            return tokens
        if group in ("run", "mark") and ":" in text[start : start + 5]:
            found = _with_colons(text, start, at)
            if found is not None:
                at = found[1]
                tokens.append(found[0])
                continue
        if group == "run":
            tokens.append(_run(value, start))
        elif group == "mark":
            alias = _ALIASES.get(value, value)
            tokens.append(Token("word" if alias in WORDS else "mark", alias, start))
        elif group == "escaped":
            tokens.append(Token("name", value, start - 1, escaped=True))
        elif group in ("set", "text"):
            tokens.append(Token("set" if group == "set" else "text", value, start - 1))
        else:
            tokens.append(Token("bad", f"unexpected character {value!r}", start))


def _run(run: str, at: int) -> Token:
    if run in WORDS:
        return Token("word", _ALIASES.get(run, run), at)
    if _MAC.fullmatch(run):
        return Token("mac", run, at, mac(run))
    if _NUMBER.fullmatch(run):
        return _number(run, at)
    if run in CONSTANTS:
        return Token("number", run, at, CONSTANTS[run])
    if _ADDRESS4.fullmatch(run):
        try:
            return Token("address4", run, at, *address4(run))
        except ValueError:
            return Token("address4", run, at, -1)  # of DECnet, perhaps
    return Token("name", run, at)


def _with_colons(text: str, start: int, run_end: int) -> tuple[Token, int] | None:
    """The address that begins here and its end, if there is one longer than the run of letters and digits."""
    mac_match, colons = _MAC.match(text, start), _COLONS.match(text, start)
    mac_end, address6_end = mac_match.end() if mac_match else start, _address6_end(text, start)
    end = max(mac_end, address6_end, colons.end() if colons else start)
    if end <= run_end:  # a mark alone, too
        return None
    found = text[start:end]
    if end == mac_end:
        return Token("mac", found, start, mac(found)), end
    if end == address6_end:
        try:
            return Token("address6", found, start, int(IPv6Address(found))), end
        except ValueError:
            return Token("bad", f"'{found}' is not an IPv6 address", start), end
    return Token("bad", f"'{found}' is neither an IPv6 nor an Ethernet address", start), end


def _address6_end(text: str, at: int) -> int:
    """Where the longest IPv6 address from `at` ends (RFC 4291 2.2); `at` when there is none."""
    end, hextets, elided = at, 0, False
    if text.startswith("::", at):
        elided, at = True, at + 2
        end = at
    while True:
        quad = _QUAD.match(text, at)
        if quad and hextets <= (5 if elided else 6) and (elided or hextets == 6):
            end = max(end, quad.end())
        hextet = _HEXTET.match(text, at)
        if hextet is None or hextets == (7 if elided else 8):
            return end
        hextets, at = hextets + 1, hextet.end()
        if elided or hextets == 8:
            end = max(end, at)
        if text.startswith("::", at) and not elided and hextets <= 7:
            elided, at = True, at + 2
            end = max(end, at)
        elif text.startswith(":", at):
            at += 1
        else:
            return end


def _number(run: str, at: int) -> Token:
    try:
        value = number(run)
    except ValueError as error:
        return Token("bad", str(error), at)
    return Token("number", run, at, value)


def number(text: str) -> int:
    """Decimal, 0x hexadecimal or 0 octal, below 2**32. ValueError says what is wrong."""
    base = 16 if text[:2] in ("0x", "0X") else 8 if len(text) > 1 and text[0] == "0" else 10
    try:
        value = int(text, base)
    except ValueError:
        raise ValueError(f"'{text}' starts with 0 and so is octal, but has a digit above 7") from None
    if value >> 32:
        raise ValueError(f"{text} does not fit in 32 bits")
    return value


def address4(text: str) -> tuple[int, int]:
    """(value of the bytes that are written, their bits): 10.1 -> (0x0a01, 16). ValueError says what is wrong."""
    value = 0
    parts = text.split(".")
    for part in parts:
        if not (part.isascii() and part.isdecimal()):
            raise ValueError(f"'{text}' is not an IPv4 address")
        if len(part.lstrip("0")) > 3 or int(part[-3:]) > 255:
            raise ValueError(f"'{text}' is not an IPv4 address: {part} is above 255")
        value = value << 8 | int(part[-3:])
    return value, 8 * len(parts)


def mac(text: str) -> int:
    """48 bits of an Ethernet address in any of the usual spellings."""
    parts = re.split("[-:.]", text)
    return int("".join(part.zfill(2 if len(parts) == 6 else 4) for part in parts), 16)
