"""What the elements of a named set are: addresses, nets, ports, port ranges, Ethernet addresses; and what a test can use of them."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address

from broker.config.policy import lexer
from broker.config.policy.errors import PolicyError
from broker.config.policy.names import ANY_PORT_PROTOCOL, SERVICES
from broker.config.policy.refused import REFUSED

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Elements:
    """One set, sorted by kind; `nets4`, `nets6` tell a net from an address, for who may use only one of them."""

    ranges4: tuple[Range, ...] = ()
    ranges6: tuple[Range, ...] = ()
    ports: tuple[Range, ...] = ()
    macs: tuple[int, ...] = ()
    net: str = ""  # the first element that is a net, not an address
    kinds: tuple[str, ...] = ()  # as words, for the error


def merge(ranges: list[Range]) -> tuple[Range, ...]:
    """Sorted and disjoint, neighbours joined."""
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def read_set(name: str, texts: tuple[str, ...]) -> Elements:
    """PolicyError (offset -1) names the element that is none of these."""
    four: list[Range] = []
    six: list[Range] = []
    ports: list[Range] = []
    macs: list[int] = []
    net = ""
    for text in texts:
        try:
            kind, value, is_net = read_element(text.strip())
        except ValueError as error:
            raise PolicyError(f"set '{name}': {error}") from None
        if kind == "mac":
            macs.append(value[0])
        else:
            {"4": four, "6": six, "port": ports}[kind].append(value)
        net = net or (text if is_net else "")
    kinds = [word for word, has in (("addresses", four or six), ("ports", ports), ("Ethernet addresses", macs)) if has]
    return Elements(merge(four), merge(six), merge(ports), tuple(sorted(set(macs))), net, tuple(kinds))


def read_element(text: str) -> tuple[str, Range, bool]:
    """(kind, first and last, is it a net); kind is 4, 6, port or mac. ValueError says what is wrong."""
    body, slash, length = text.partition("/")
    if slash:
        if not length.isascii() or not length.isdigit():
            raise ValueError(f"'{text}': the length after / is not a number")
        return _net(text, body, int(length))
    token = lexer.scan(text)[0] if text else lexer.Token("bad", "an empty element", 0)
    whole = token.text == text
    if whole and token.kind == "address4" and token.bits == 32:
        return "4", (token.value, token.value), False
    if whole and token.kind == "address6":
        return "6", (token.value, token.value), False
    if whole and token.kind == "mac":
        return "mac", (token.value, token.value), False
    if token.kind == "bad":
        raise ValueError(token.text)
    if token.kind == "address4" and token.value < 0:
        lexer.address4(text)  # says what is wrong
    first, last, _ = port_range(text)
    return "port", (first, last), False


def _net(text: str, body: str, length: int) -> tuple[str, Range, bool]:
    if ":" in body:
        try:
            net, bits, kind = int(IPv6Address(body)), 128, "6"
        except ValueError:
            raise ValueError(f"'{text}' is not an IPv6 net") from None
    else:
        try:
            written, n_bits = lexer.address4(body)
        except ValueError:
            raise ValueError(f"'{text}' is not an IPv4 net") from None
        net, bits, kind = written << (32 - n_bits), 32, "4"
    if length > bits:
        raise ValueError(f"'{text}': the length after / is above {bits}")
    rest = (1 << (bits - length)) - 1
    if net & rest:
        raise ValueError(f"'{text}' has bits set behind its first {length}")
    return kind, (net, net | rest), length < bits


def port(text: str) -> tuple[int, int]:
    """(number, bits of the protocols it is for) of a number or a service name. ValueError says what is wrong."""
    if text.isascii() and text[:1].isdigit() and (text.isdigit() or text[:2] in ("0x", "0X")):
        value = lexer.number(text)
        if value > 65535:
            raise ValueError(f"port {text} is above 65535")
        return value, ANY_PORT_PROTOCOL
    if text not in SERVICES:
        raise ValueError(f"'{text}' is {REFUSED['service']}: write the port number")
    return SERVICES[text]


def port_range(text: str) -> tuple[int, int, int]:
    """(first, last, bits) of ``80``, ``80-90``, ``http``, ``ftp-data-ftp``; either end may come first. ValueError says what is wrong."""
    if text in SERVICES or "-" not in text:
        number, bits = port(text)
        return number, number, bits
    for at, character in enumerate(text):  # a name may contain the dash
        if character == "-" and _is_port(text[:at]) and _is_port(text[at + 1 :]):
            (one, bits_one), (two, bits_two) = port(text[:at]), port(text[at + 1 :])
            return min(one, two), max(one, two), bits_one if bits_one == bits_two else ANY_PORT_PROTOCOL
    for part in text.split("-", 1):
        port(part)
    raise ValueError(f"'{text}' is not a range of ports")


def _is_port(text: str) -> bool:
    try:
        port(text)
    except ValueError:
        return False
    return True
