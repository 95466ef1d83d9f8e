"""The words of an expression, as libpcap's scanner cuts them, and ours: ``$name``.

The longest run of letters, digits and ``-_.:`` is one word; what it looks like decides what it is. A run that is nothing becomes a `bad`
token, so that an error left of it is told first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Literal

Kind = Literal["word", "number", "address4", "address6", "mac", "name", "set", "mark", "bad", "end"]

_WORDS = """
src dst host net port portrange proto mask and or not less greater len length broadcast multicast vlan
ether link ip ip6 arp rarp tcp udp sctp icmp icmp6 igmp igrp pim vrrp carp ah esp decnet lat sca mopdl moprc stp netbeui iso
fddi tr wlan ppp slip
"""
_LATER = """
gateway protochain byte mpls pppoed pppoes geneve vxlan llc atalk aarp ipx clnp esis es-is isis is-is l1 l2 iih lsp snp csnp psnp
"""
_NOT_ETHERNET = "radio type subtype dir direction addr1 addr2 addr3 addr4 ra ta batadv"
_NOT_ATM = "lane oam oamf4 oamf4ec oamf4sc metac bcc sc ilmic vpi vci connectmsg metaconnect"
_NOT_SS7 = "fisu lssu lsu msu hfisu hlssu hmsu sio opc dpc sls hsio hopc hdpc hsls"

WORDS = frozenset(_WORDS.split())
_ALIASES = {
    "&&": "and", "||": "or", "!": "not", "length": "len", "==": "=", "carp": "vrrp",
    **dict.fromkeys(("link", "fddi", "tr", "wlan", "ppp", "slip"), "ether"),
}  # fmt: skip

LATER = frozenset(_LATER.split())
"""Words of pcap-filter(7) that are not understood yet."""

CONSTANTS = frozenset(("icmptype", "icmpcode", "icmp6type", "icmp6code", "tcpflags"))
CONSTANT_BEGINNINGS = ("icmp-", "icmp6-", "tcp-")
"""Names of numbers; they make sense with byte access only, and so are not understood yet either."""

NEVER = {
    **dict.fromkeys(("inbound", "outbound", "ifindex"), "a packet in the ring does not say its direction; name the input in the map"),
    **dict.fromkeys(_NOT_ETHERNET.split(), "traffic is Ethernet"),
    **dict.fromkeys(("on", "ifname", "rset", "ruleset", "rnr", "srnr", "reason", "action"), "it is about OpenBSD's packet filter"),
    **dict.fromkeys(_NOT_ATM.split(), "it is about ATM"),
    **dict.fromkeys(_NOT_SS7.split(), "it is about SS7"),
}
"""Words of pcap-filter(7) that make no sense here, and why."""

_TOKEN = re.compile(
    r"[ \t\r\n]*(?:"
    r"(?P<run>[A-Za-z0-9:][A-Za-z0-9:._-]*)"
    r"|\$(?P<set>[A-Za-z0-9_][A-Za-z0-9_.-]*)"
    r"|\\(?P<escaped>[^ !()\n\t]+)"
    r"|(?P<mark>&&|\|\||>=|<=|!=|==|<<|>>|[-+*/%\[\]!<>()&|^=])"
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
_NAME = re.compile(r"[A-Za-z0-9](?:[-_.A-Za-z0-9]*[.A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Token:
    """`text` is the word in its one spelling, the name, or for `bad` what is wrong; `value` the number or the address."""

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
        value, start = match.group(group), match.start(group)
        if group == "end":
            tokens.append(Token("end", "", len(text)))
            return tokens
        if group == "run":
            tokens.append(_run(value, start))
        elif group == "mark":
            alias = _ALIASES.get(value, value)
            tokens.append(Token("word" if alias in WORDS else "mark", alias, start))
        elif group == "escaped":
            tokens.append(Token("name", value, start - 1, escaped=True))
        elif group == "set":
            tokens.append(Token("set", value, start - 1))
        else:
            tokens.append(Token("bad", f"unexpected character {value!r}", start))
        at = match.end()


def _run(run: str, at: int) -> Token:
    if run in WORDS:
        return Token("word", _ALIASES.get(run, run), at)
    if _MAC.fullmatch(run):
        return Token("mac", run, at, mac(run))
    if _NUMBER.fullmatch(run):
        return _number(run, at)
    if _ADDRESS4.fullmatch(run):
        try:
            value, bits = address4(run)
        except ValueError as error:
            return Token("bad", str(error), at)
        return Token("address4", run, at, value, bits)
    if ":" in run:
        try:
            return Token("address6", run, at, int(IPv6Address(run)))
        except ValueError:
            return Token("bad", f"'{run}' is neither an IPv6 nor an Ethernet address", at)
    if _NAME.fullmatch(run):
        return Token("name", run, at)
    return Token("bad", f"'{run}' is not a word, a number or an address", at)


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
        if len(part) > 9 or int(part) > 255:
            raise ValueError(f"'{text}' is not an IPv4 address: {part} is above 255")
        value = value << 8 | int(part)
    return value, 8 * len(parts)


def mac(text: str) -> int:
    """48 bits of an Ethernet address in any of the usual spellings."""
    parts = re.split("[-:.]", text)
    return int("".join(part.zfill(2 if len(parts) == 6 else 4) for part in parts), 16)
