"""What rides on IEEE 802.2: its own frame types, OSI's network protocols and IS-IS (ISO/IEC 10589); and DECnet's addresses."""

from __future__ import annotations

from broker.config.policy import link, tree
from broker.config.policy.errors import PolicyError
from broker.config.policy.link import equals, field, masked
from broker.config.policy.names import LLC_SUPERVISORY, LLC_UNNUMBERED, OSI_PROTOCOLS
from broker.config.policy.refused import REFUSED
from broker.config.policy.tree import DESTINATION, NETWORK, PPPOE, And, Layer, Node, Not, Or

ISIS_TYPES = {
    "l1": (15, 17, 18, 24, 26), "l2": (16, 17, 20, 25, 27), "iih": (15, 16, 17), "lsp": (18, 20), "snp": (24, 25, 26, 27),
    "csnp": (24, 25), "psnp": (26, 27),
}  # fmt: skip
_ISIS_TYPE = 4  # in the IS-IS header
_ISO_ACCESS_POINT = 0xFE


def llc(layer: Layer, name: str | None, at: int) -> Node:
    """`name`: i, s, u or a frame type."""
    link.only_ethernet(layer, "IEEE 802.2 frames", at)
    layer = link.below_labels(layer)  # libpcap looks before them
    node = And((link.is_802_3(layer), Not(equals(field(layer, NETWORK, 0, 2), 0xFFFF))))
    if name is None:
        return node
    control, word = field(layer, NETWORK, 2, 1), name.lower()
    if word == "i":
        test = masked(control, 0x01, 0)
    elif word in ("s", "u"):
        test = masked(control, 0x03, 1 if word == "s" else 3)
    elif word in LLC_SUPERVISORY:
        test = masked(control, 0x0F, LLC_SUPERVISORY[word])
    elif word in LLC_UNNUMBERED:
        test = masked(control, 0xEF, LLC_UNNUMBERED[word])
    else:
        raise PolicyError(f"unknown type of LLC frame '{name}' (types: i, s, u, {', '.join((*LLC_SUPERVISORY, *LLC_UNNUMBERED))})", at)
    return tree.both(node, test)


def iso(layer: Layer, value: int, at: int) -> Node:
    return And((link.ether_type(layer, _ISO_ACCESS_POINT, at), equals(_osi_field(layer, 0), value)))


def isis(layer: Layer, value: int, at: int) -> Node:
    return And((iso(layer, OSI_PROTOCOLS["isis"], at), equals(_osi_field(layer, _ISIS_TYPE), value)))


def _osi_field(layer: Layer, offset: int) -> tree.Load:
    """Behind the LLC header, which PPP does not have; libpcap takes it for absent in whatever PPP carries."""
    return field(layer, NETWORK, offset + (0 if PPPOE in layer else 3), 1)


def protocol(layer: Layer, word: str, at: int) -> Node:
    """``clnp``, ``isis``, ``l1``, ..."""
    if word in OSI_PROTOCOLS:
        return iso(layer, OSI_PROTOCOLS[word], at)
    return Or(tuple(isis(layer, value, at) for value in ISIS_TYPES[word]))


def decnet(layer: Layer, side: int, address: int, at: int) -> Node:
    """`address`: area << 10 | node. As libpcap does: data packets with the short or the long header, behind no or one byte of padding."""
    swapped = (address & 0xFF) << 8 | address >> 8 & 0xFF
    short, long = (1, 7) if side == DESTINATION else (3, 15)
    ways = []
    for flags, offset in ((2, short), (6, long)):
        ways.append((masked(field(layer, NETWORK, 2, 1), 0x07, flags), 2 + offset))
        ways.append((masked(field(layer, NETWORK, 2, 2), 0xFF07, 0x8100 | flags), 3 + offset))
    tests = tuple(And((header, equals(field(layer, NETWORK, at_, 2), swapped))) for header, at_ in ways)
    return And((link.protocol(layer, "decnet", at), Or(tests)))


def decnet_address(text: str, at: int) -> int:
    parts = text.split(".")
    if len(parts) != 2:
        raise PolicyError(f"'{text}' is not a DECnet address: {REFUSED['decnet']}", at)
    area, node = (int(part.lstrip("0")[:6] or "0") for part in parts)
    if area > 63 or node > 1023:
        raise PolicyError(f"DECnet address {text}: {REFUSED['too large']}", at)
    return area << 10 | node
