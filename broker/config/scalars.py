"""What a single value may be. Each function takes what stood in the document (`Text`, None, a list or a dict) and returns the value, or
raises `Wrong` with what was found and what was expected."""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Iterable
from typing import Any, get_args

from broker.config.document import Path, Text
from broker.config.policy.sets import read_element
from broker.core.model import TunnelKind

_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]*(?:_[0-9]+)*)")
_HEXADECIMAL = re.compile(r"0x[0-9A-Fa-f]+(?:_[0-9A-Fa-f]+)*")
_NUMBER = re.compile(r"(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")
_RANGE = re.compile(r"([0-9]+)-([0-9]+)")
_TIMES = re.compile(r"((?:0|[1-9][0-9]*)(?:\.[0-9]+)?)x")

LONGEST_SLIP = 100
NAME_PATTERN = f"^{_NAME.pattern}$"
IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class Wrong(ValueError):  # noqa: N818 - it is caught where it is made into an error with a place
    """`at`: the part of the value that is meant, from the value's own path. `key`: the key there and not what it leads to."""

    def __init__(self, text: str, at: Path = (), *, key: bool = False) -> None:
        super().__init__(text)
        self.at = at
        self.key = key


def shown(value: Any) -> str:
    """What was found, in words."""
    if value is None:
        return "nothing"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a mapping"
    text = str(value)
    return repr(text if len(text) <= 40 else text[:37] + "...")


def suggest(word: str, known: Iterable[str], what: str = "known are") -> str:
    """``; did you mean 'x'?``, or what there is."""
    known = list(known)
    close = closest(word, known) or [k for k in known if k.lower() == word.lower()]
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; {what} {enumerated(known)}" if known else ""


def enumerated(words: Iterable[str]) -> str:
    words = list(words)
    more = f" and {len(words) - 12} more" if len(words) > 12 else ""
    return ", ".join(words[:12]) + more


def alternatives(words: Iterable[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} or {last}" if first else last


def text(value: Any, expected: str = "text") -> str:
    if not isinstance(value, str):
        hint = "; put text that contains ':' in quotes" if isinstance(value, dict) else ""
        raise Wrong(f"found {shown(value)}, expected {expected}{hint}")
    return str(value)


def integer(value: Any, low: int, high: int) -> int:
    expected = f"expected {low}..{high}"
    word = text(value, f"a whole number {low}..{high}")
    if isinstance(value, Text) and not value.plain:
        raise Wrong(f"{shown(value)} in quotes is text, {expected} without quotes")
    if _DECIMAL.fullmatch(word) and len(word) < 40:
        number = int(word)
    elif _HEXADECIMAL.fullmatch(word) and len(word) < 40:
        number = int(word, 16)
    elif re.fullmatch("0[0-9_]+", word):
        raise Wrong(f"{shown(value)} is octal to some and decimal to others, {expected} without a leading zero")
    else:
        raise Wrong(f"{shown(value)} is not a whole number, {expected}")
    if not low <= number <= high:
        raise Wrong(f"{word} is out of range, {expected}")
    return number


def power_of_two(value: Any, low: int, high: int) -> int:
    number = integer(value, low, high)
    if number & (number - 1):
        raise Wrong(f"{number} is not a power of two, expected {1 << number.bit_length() - 1} or {1 << number.bit_length()}")
    return number


def boolean(value: Any) -> bool:
    word = text(value, "true or false")
    quoted = isinstance(value, Text) and not value.plain
    if word in ("true", "True", "TRUE") and not quoted:
        return True
    if word in ("false", "False", "FALSE") and not quoted:
        return False
    raise Wrong(
        f"{shown(value)} in quotes is text, expected true or false without them"
        if quoted
        else f"found {shown(value)}, expected true or false"
    )


def seconds(value: Any, high: int, low: float = 0) -> float:
    expected = f"a number of seconds {low}..{high}"
    word = text(value, expected)
    if not _NUMBER.fullmatch(word) or not low <= float(word) <= high:
        raise Wrong(f"found {shown(value)}, expected {expected}")
    return float(word)


def choice(value: Any, words: tuple[str, ...]) -> str:
    word = text(value, alternatives(words))
    if word not in words:
        raise Wrong(f"unknown word '{word}', expected {alternatives(words)}{suggest(word, words) if is_close(word, words) else ''}")
    return word


def is_close(word: str, words: Iterable[str]) -> bool:
    return bool(closest(word, words))


def closest(word: str, words: Iterable[str]) -> list[str]:
    """The one that the word may be a slip of; none of a word so long that looking would take seconds."""
    return difflib.get_close_matches(word, list(words), 1, 0.6) if len(word) <= LONGEST_SLIP else []


def name(value: Any) -> str:
    word = text(value, "a name")
    if not _NAME.fullmatch(word):
        raise Wrong(f"{shown(value)} is not a name, expected up to 63 letters, digits, '_', '-' and '.', not starting with '-' or '.'")
    return word


def label(value: Any) -> str:
    """A line for people."""
    word = text(value, "a line of text")
    if not 0 < len(word) <= 100 or not word.isprintable():
        raise Wrong(f"found {shown(value)}, expected a line of up to 100 characters")
    return word


def packet(value: Any) -> Any:
    """Fields, what they may be is said by `broker.config.packet`."""
    if not isinstance(value, dict):
        raise Wrong(f"found {shown(value)}, expected the fields of a packet, such as {{ip.src: 10.1.0.5, tcp.dst: 443}}")
    return value


def interface(value: Any) -> str:
    """As the kernel has it: IFNAMSIZ 16 with the zero, dev_valid_name()."""
    word = text(value, "the name of a network interface")
    if not 0 < len(word.encode()) < 16 or word in (".", "..") or re.search(r"[/:\s]", word):
        raise Wrong(f"{shown(value)} is not an interface, expected a name of up to 15 characters without '/', ':' and spaces")
    return word


def file(value: Any) -> str:
    word = text(value, "the name of a file")
    if not word:
        raise Wrong("found '', expected the name of a file")
    if "-----BEGIN" in word:
        raise Wrong("found what such a file holds, expected its name")
    return word


def address(value: Any) -> IpAddress:
    word = text(value, "an IPv4 or IPv6 address")
    try:
        found = ipaddress.ip_address(word)
    except ValueError:
        raise Wrong(f"{shown(value)} is not an IPv4 or IPv6 address, expected one such as 192.0.2.9; names are not looked up") from None
    if isinstance(found, ipaddress.IPv6Address):
        if found.scope_id is not None or found.is_link_local:
            raise Wrong(f"{shown(value)} is link-local, expected an address that is valid beyond one link")
        if found.ipv4_mapped is not None:
            raise Wrong(f"{shown(value)} is an IPv4-mapped address, expected {found.ipv4_mapped}")
    return found


def host(value: Any) -> str:
    """An address that one host can have, in its one spelling."""
    found = address(value)
    if found.is_unspecified:
        kind = "the unspecified address"
    elif found.is_multicast:
        kind = "a multicast address"
    elif found == ipaddress.IPv4Address("255.255.255.255"):
        kind = "the broadcast address"
    else:
        return str(found)
    raise Wrong(f"{shown(value)} is {kind}, expected the address of one host")


def net(value: Any) -> str:
    """An address or a net, in its one spelling: with a prefix length."""
    word = text(value, "an address or a net")
    try:
        found = ipaddress.ip_network(word, strict=False)
    except ValueError:
        raise Wrong(f"{shown(value)} is not an address (10.1.0.5) or a net (10.1.0.0/24)") from None
    at = ipaddress.ip_interface(word)
    if "%" in word or (isinstance(at, ipaddress.IPv6Interface) and at.ip.ipv4_mapped is not None):
        raise Wrong(f"{shown(value)} is {'of one link' if '%' in word else 'IPv4-mapped'}, expected a net without that")
    if at.ip != found.network_address:
        raise Wrong(f"{shown(value)} has bits set behind its prefix, expected {found} or {at.ip}")
    return str(found)


def endpoint(value: Any) -> str:
    """``address:port``, ``[address]:port`` for IPv6; port 0: one that the kernel chooses."""
    word = text(value, "address:port")
    at, _, port = word.rpartition(":")
    wrong = Wrong(f"{shown(value)} is not address:port, expected such as 127.0.0.1:9464 or '[::1]:9464'")
    bracketed = at.startswith("[") and at.endswith("]")
    try:
        found = ipaddress.ip_address(at[1:-1] if bracketed else at)
    except ValueError:
        raise wrong from None
    if bracketed != (found.version == 6) or not _DECIMAL.fullmatch(port):
        raise wrong
    if not 0 <= int(port[:9]) <= 65_535:
        raise Wrong(f"port {port} is out of range, expected 0..65535")
    return f"[{found}]:{int(port)}" if bracketed else f"{found}:{int(port)}"


def server_name(value: Any) -> str:
    """A name that a certificate may have: of a host, or an address."""
    word = text(value, "the name of a host")
    if not re.fullmatch(r"[A-Za-z0-9:]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9:])?", word):
        raise Wrong(f"{shown(value)} is not a name of a host, expected one such as collector.example.net")
    return word


def pace(value: Any) -> str:
    """``max``, ``recorded``, ``2x`` (times as fast as recorded) or packets per second."""
    expected = "expected max, recorded, a factor such as 2x or 0.5x, or packets per second such as 10000"
    word = text(value, expected.removeprefix("expected "))
    if word in ("max", "recorded"):
        return word
    if (times := _TIMES.fullmatch(word)) and 0.001 <= float(times[1]) <= 1_000_000:
        return word
    if _DECIMAL.fullmatch(word) and len(word) < 20 and 1 <= int(word) <= 1_000_000_000:
        return str(int(word))
    raise Wrong(f"found {shown(value)}, {expected}{suggest(word, ('max', 'recorded')) if is_close(word, ('max', 'recorded')) else ''}")


def set_entry(value: Any) -> str:
    """An address, a net, a port, a range of ports or an Ethernet address, in its one spelling."""
    word = text(value, "an address, a net, a port or a range of ports")
    if _DECIMAL.fullmatch(word) or _RANGE.fullmatch(word):
        return _ports(word)
    if (kind := entry_kind(word)) in ("ports", "Ethernet addresses"):
        return word.lower() if kind == "Ethernet addresses" else word
    try:
        net = ipaddress.ip_network(word, strict=False)
    except ValueError:
        expected = "expected an address (10.1.0.5), a net (10.1.0.0/24), a port (443) or a range of ports (8000-8080)"
        raise Wrong(f"{shown(value)} is not one, {expected}") from None
    at = ipaddress.ip_interface(word)
    if at.ip != net.network_address:
        raise Wrong(f"{shown(value)} has bits set behind its prefix, expected {net} or {at.ip}")
    if isinstance(at, ipaddress.IPv6Interface) and at.ip.scope_id is not None:
        raise Wrong(f"{shown(value)} names a link, expected an address without '%'")
    return str(net) if "/" in word else str(at.ip)


def entry_kind(entry: str) -> str:
    """What an entry of a set is, as the policy reads it: addresses, ports, Ethernet addresses; empty: nothing it knows."""
    try:
        kind, _, _ = read_element(entry)
    except ValueError:
        return ""
    return {"port": "ports", "mac": "Ethernet addresses"}.get(kind, "addresses")


def _ports(word: str) -> str:
    first, _, last = word.partition("-") if _RANGE.fullmatch(word) else (word, "", "")
    ports = [int(port) for port in (first, last) if port and len(port) < 20]
    if len(ports) != 1 + bool(last) or not all(0 <= port <= 65_535 for port in ports):
        raise Wrong(f"'{word}' is out of range, expected ports 0..65535")
    if ports != sorted(ports):
        raise Wrong(f"'{word}' runs backwards, expected {ports[1]}-{ports[0]}")
    return "-".join(map(str, ports))


def one_or_many(value: Any, *, mappings: bool = False) -> Any:
    """A single word, or a single mapping, where a list of them is meant."""
    if value is None:
        raise Wrong("found nothing, expected a list")
    return [value] if isinstance(value, str) or (mappings and isinstance(value, dict)) else value


def rule(value: Any) -> dict[str, str]:
    """{pass: expression} or {drop: expression}."""
    expected = "expected 'pass: EXPRESSION' or 'drop: EXPRESSION'"
    if not isinstance(value, dict):
        raise Wrong(f"found {shown(value)}, {expected}")
    for key in value:
        if key not in ("pass", "drop"):
            raise Wrong(f"unknown key '{key}'{suggest(key, ('pass', 'drop'), 'expected')}", (key,), key=True)
    if len(value) != 1:
        raise Wrong(f"{'pass and drop in one rule' if value else 'an empty rule'}, {expected}")
    ((action, expression),) = value.items()
    try:
        return {action: text(expression, "an expression; '' takes every packet")}
    except Wrong as wrong:
        raise Wrong(str(wrong), (action,)) from None


def kind_of(value: Any, kinds: Iterable[str]) -> Any:
    """A mapping whose key `kind` is one of `kinds`; what else is in it, its own model says."""
    kinds = tuple(kinds)
    expected = alternatives(kinds)
    if not isinstance(value, dict):
        raise Wrong(f"found {shown(value)}, expected a mapping with kind: {expected}")
    if "kind" not in value:
        raise Wrong(f"key 'kind' is missing, expected {expected}")
    kind = value["kind"]
    if kind not in kinds:
        found = f"unknown kind {shown(kind)}" if isinstance(kind, str) else f"found {shown(kind)}"
        hint = suggest(str(kind), kinds) if is_close(str(kind), kinds) else ""
        raise Wrong(f"{found}, expected {expected}{hint}", ("kind",))
    return value


def tool(value: Any, kinds: tuple[str, ...]) -> Any:
    """A mapping with either `tunnel` or a `kind` that is one of `kinds`."""
    expected = f"kind: {alternatives(kinds)}"
    if not isinstance(value, dict):
        raise Wrong(f"found {shown(value)}, expected a mapping with tunnel: {{...}} or {expected}")
    if "tunnel" in value and "kind" in value:
        raise Wrong("a tool has a tunnel or a kind, not both; leave one out", ("kind",))
    if "tunnel" not in value and "kind" not in value:
        raise Wrong(f"neither tunnel nor kind, expected tunnel: {{kind: gre, ...}} or {expected}")
    if "kind" in value and value["kind"] in get_args(TunnelKind):
        raise Wrong(f"'{value['kind']}' is the kind of a tunnel, expected tunnel: {{kind: {value['kind']}, ...}}", ("kind",))
    return value if "tunnel" in value else kind_of(value, kinds)
