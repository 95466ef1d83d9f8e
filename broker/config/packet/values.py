"""How the value of a field is read, and what may be written: numbers, addresses, names, bytes. A reader raises `Wrong`."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from broker.config import scalars
from broker.config.policy import sets
from broker.config.policy.names import ETHERTYPES, PROTOCOLS, SERVICES
from broker.config.scalars import Wrong, is_close, shown, suggest

MAX_PAYLOAD = 60_000
"""With the most headers that can stand before it, it still fits the length of an IP packet."""

_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_TCP_FLAGS = ("fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ae")
"""From bit 0 on."""

TCP_FLAGS = {name: 1 << bit for bit, name in enumerate(_TCP_FLAGS)} | {"reset": 4, "push": 8}
_PROTOCOLS = {name: value for name, value in PROTOCOLS.items() if name != "ip"} | {"icmpv6": 58, "icmp6": 58}
_ETHERTYPES = {name: value for name, value in ETHERTYPES.items() if value >= 0x600} | {"ipv6": 0x86DD, "vlan": 0x8100, "mpls": 0x8847}


@dataclass(frozen=True, slots=True)
class Kind:
    """`read` takes what stood in the document; `json` says to an editor what may stand there; `words` to a person."""

    read: Callable[[Any], Any]
    json: Mapping[str, Any]
    words: str


def number(bits: int) -> Kind:
    high = (1 << bits) - 1
    return Kind(partial(scalars.integer, low=0, high=high), {"type": "integer", "minimum": 0, "maximum": high}, f"0..{high}")


def whole(low: int, high: int) -> Kind:
    return Kind(partial(scalars.integer, low=low, high=high), {"type": "integer", "minimum": low, "maximum": high}, f"{low}..{high}")


def named(bits: int, names: Mapping[str, int], what: str) -> Kind:
    """A number, or a name that stands for one."""
    high = (1 << bits) - 1

    def read(value: Any) -> int:
        word = scalars.text(value, what)
        if word in names:
            return names[word]
        if word[:1].isdigit():
            return scalars.integer(word, 0, high)
        raise Wrong(f"{shown(value)} is not {what}, expected 0..{high} or a name{suggest(word, names) if is_close(word, names) else ''}")

    return Kind(read, {"type": ["integer", "string"]}, "number or name")


def _listed(one: Kind, most: int, value: Any) -> list[Any]:
    if not isinstance(value, list):
        return [one.read(value)]
    if not 1 <= len(value) <= most:
        raise Wrong(f"found {len(value)} entries, expected 1..{most}")
    found = []
    for at, entry in enumerate(value):
        try:
            found.append(one.read(entry))
        except Wrong as wrong:
            raise Wrong(str(wrong), (at, *wrong.at)) from None
    return found


def several(one: Kind, most: int) -> Kind:
    """A list from the outside in, or a single value."""
    json = {"anyOf": [one.json, {"type": "array", "items": one.json, "minItems": 1, "maxItems": most}]}
    return Kind(partial(_listed, one, most), json, f"{one.words}, or a list from the outside in")


def _flag(value: Any) -> bool:
    return value == "1" if value in ("0", "1") else scalars.boolean(value)


def _true(value: Any) -> bool:
    if not _flag(value):
        raise Wrong("found false, expected true; leave it out where the header is not there")
    return True


def _ip(version: int, value: Any) -> bytes:
    what = f"an IPv{version} address"
    word = scalars.text(value, what)
    try:
        found = ipaddress.ip_address(word)
    except ValueError:
        found = None
    if found is None or "%" in word:
        raise Wrong(f"{shown(value)} is not {what}")
    if found.version != version:
        layer = "ip" if found.version == 4 else "ipv6"
        raise Wrong(f"{shown(value)} is an IPv{found.version} address, expected {what}; there are {layer}.src and {layer}.dst too")
    return found.packed


def _mac(value: Any) -> bytes:
    word = scalars.text(value, "an Ethernet address")
    try:
        kind, (address, _), _ = sets.read_element(word)
    except ValueError:
        kind, address = "", 0
    if kind != "mac":
        raise Wrong(f"{shown(value)} is not an Ethernet address, expected one such as 02:00:00:00:00:01")
    return address.to_bytes(6, "big")


def _tcp_flags(value: Any) -> int:
    if isinstance(value, str) and value[:1].isdigit():
        return scalars.integer(value, 0, 0x1FF)
    one = Kind(_tcp_flag, {}, "")
    return sum(set(_listed(one, len(_TCP_FLAGS), value)))


def _tcp_flag(value: Any) -> int:
    word = scalars.text(value, "the name of a flag")
    if word not in TCP_FLAGS:
        raise Wrong(f"unknown flag {shown(value)}{suggest(word, _TCP_FLAGS, 'expected')}")
    return TCP_FLAGS[word]


def hexadecimal(value: Any) -> bytes:
    """Digits in pairs; ``0x`` before them and blanks, colons and line ends between them are passed over."""
    word = re.sub(r"[\s:_]", "", scalars.text(value, "hexadecimal digits")).removeprefix("0x")
    if not _HEX.fullmatch(word):
        raise Wrong(f"{shown(value)} is not bytes, expected pairs of hexadecimal digits")
    return bytes.fromhex(word)


def _data(value: Any) -> bytes:
    word = scalars.text(value, "text, or 0x and hexadecimal digits")
    try:
        data = hexadecimal(word) if word.startswith("0x") else word.encode()
    except UnicodeEncodeError:
        raise Wrong("found bytes that are not text, expected 0x and hexadecimal digits for them") from None
    if len(data) > MAX_PAYLOAD:
        raise Wrong(f"{len(data)} bytes, expected at most {MAX_PAYLOAD}")
    return data


FLAG = Kind(_flag, {"enum": [True, False, 0, 1]}, "true or false")
TRUE = Kind(_true, {"const": True}, "true")
IP4 = Kind(partial(_ip, 4), {"type": "string"}, "IPv4 address")
IP6 = Kind(partial(_ip, 6), {"type": "string"}, "IPv6 address")
MAC = Kind(_mac, {"type": "string"}, "Ethernet address")
PORT = named(16, {name: value for name, (value, _) in SERVICES.items()}, "a port")
PROTOCOL = named(8, _PROTOCOLS, "a protocol")
ETHERTYPE = named(16, _ETHERTYPES, "an ethertype")
TCP_FLAGS_SET = Kind(_tcp_flags, {"type": ["integer", "string", "array"]}, "names, or a number")
DATA = Kind(_data, {"type": ["string", "integer"]}, "text, or 0x and hexadecimal digits")
HEX = Kind(hexadecimal, {"type": ["string", "integer"]}, "hexadecimal digits")
NAME = Kind(scalars.name, {"type": "string"}, "name")
