"""``inner (...)``: what a tunnel carries.

    inner (tcp port 80)        inner gre key 7        inner vxlan vni {5000-5009, 6000} (src net 10.0.0.0/8)

Within the parentheses all words are about the packet inside; libpcap's steps (``vlan``, ``mpls``) left of ``inner`` do not matter to it:
the tunnel is looked for behind all tags. A packet without such a tunnel is inside of nothing: false.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.config.policy import tree, values
from broker.config.policy.errors import PolicyError
from broker.config.policy.tree import Node, Or, Ranges, both
from broker.config.policy.values import Numbers

if TYPE_CHECKING:
    from broker.config.policy.parser import Parser

_32_BITS, _24_BITS = (1 << 32) - 1, (1 << 24) - 1
TUNNELS: dict[str, tuple[int, str, Numbers | None]] = {
    "gre": (tree.GRE, "key", Numbers("GRE key", _32_BITS)),
    "erspan": (tree.ERSPAN, "id", Numbers("ERSPAN session id", 1023)),
    "vxlan": (tree.VXLAN, "vni", Numbers("VXLAN VNI", _24_BITS)),
    "geneve": (tree.GENEVE_TUNNEL, "vni", Numbers("Geneve VNI", _24_BITS)),
    "gtp": (tree.GTP, "teid", Numbers("GTP TEID", _32_BITS)),
    "mpls": (tree.MPLS_TUNNEL, "label", Numbers("MPLS label", (1 << 20) - 1)),
    "ipip": (tree.IPIP, "", None),
}
"""Word: (kind, what its ids are called, which there are)."""
WORDS = frozenset((*TUNNELS, *(word for _, word, _ in TUNNELS.values() if word)))


def inner(p: Parser) -> Node:
    start = p.next()
    outside, outer = p.layer, tree.tunnels(p.layer)
    if len(outer) == tree.MAX_INNER:
        raise PolicyError(f"tunnels are followed {tree.MAX_INNER} deep", start.at)
    kind, wanted = tree.ANY_TUNNEL, None
    token = p.peek()
    if token.kind in ("name", "word") and token.text in TUNNELS and not token.escaped:
        p.next()
        kind, word, numbers = TUNNELS[token.text]
        wanted = ids(p, word, numbers) if numbers else None
    elif token.kind == "name" and not token.escaped:
        raise p.unexpected(f"'(' or a tunnel: {', '.join(TUNNELS)}")
    test = Or(()) if wanted == () else tree.Tunnel(outer, kind, wanted)
    if not p.is_mark("("):
        return test
    p.enter()
    p.next()
    p.layer = (*outer, tree.INNER)
    node, _ = p.expression(None)
    p.close()
    p.layer = outside
    p.nesting -= 1
    return both(test, node)


def ids(p: Parser, word: str, numbers: Numbers) -> Ranges | None:
    """The numbers behind a kind of tunnel, with or without the word for them. None: any."""
    if p.is_name(word):
        p.next()
        return p.numbers(numbers)
    return p.numbers(numbers) if values.is_next(p, numbers) else None
