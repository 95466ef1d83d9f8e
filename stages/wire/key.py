"""KEY: what one pass over a packet's headers finds, one cache line a packet, host byte order.

`source` and `destination` are (high, low) of an IPv6 address; IPv4 and ARP addresses are in the low word, the high one is 0.

Of an odd row all is filled that the bytes at hand say: a protocol that is cut off is NOT_IP, an address (of IPv6: each half) is 0.

| fragment | the packet is | ports, detail |
|---|---|---|
| FRAGMENT_NONE | no fragment | its own |
| FRAGMENT_FIRST | the fragment at offset 0, with more to come | its own |
| FRAGMENT_LATER | a later one; its first is not known or too short. Or any, if its fragment header is cut off | hidden; cut |
| FRAGMENT_FOLLOWED | a later one; its first is known | those of its first, as far as it shows any |
| FRAGMENT_ATOMIC | IPv6, offset 0 and no more: whole (RFC 6946) | its own |
| FRAGMENT_TINY | a first one without all of what ports and flags stand in (RFC 1858, 7112), or TCP at offset 8 (RFC 3128) | hidden |
| FRAGMENT_CONFLICT | of a datagram whose fragments contradict each other (RFC 5722) | hidden |

FOLLOWED and CONFLICT are the work of stages/wire/fragments.py, all else is in the packet alone.
"""

from __future__ import annotations

import numpy as np

KEY = np.dtype(
    {
        "names": [
            "source_high", "source_low", "destination_high", "destination_low",
            "at",  # address of the frame
            "caplen",
            "flow",  # symmetric hash
            "ethertype",  # behind the tags
            "protocol",  # IPv4 protocol, 256 + IPv6 next header, 512 + next header of the fragment header right behind, or NOT_IP
            "source_port", "destination_port",
            "kind",  # KIND_*
            "n_tags",  # 0x8100, 0x88a8, 0x9100; at most MAX_TAGS, a further one is the ethertype
            "source_state", "destination_state",  # PORT_*
            "odd",  # 1: a fixed header is not wholly there, so the fields above do not say all
            "fragment",  # FRAGMENT_*
            "detail",  # TCP flags, ICMP_AT + ICMP type, ICMP6_AT + ICMPv6 type, or DETAIL_*
        ],
        "formats": ["<i8", "<i8", "<i8", "<i8", "<i8", "<u4", "<u4", "<u2", "<u2", "<u2", "<u2", *["u1"] * 6, "<u2"],
        "offsets": [0, 8, 16, 24, 32, 40, 44, 48, 50, 52, 54, 56, 57, 58, 59, 60, 61, 62],
        "itemsize": 64,
    }
)  # fmt: skip

KIND_OTHER, KIND_IP, KIND_IP6, KIND_ARP = range(4)

# as broker.config.policy.image has them: states of a port
PORT_NONE, PORT_CUT, PORT_HIDDEN, PORT_SEEN = range(4)

# as broker.config.policy.compiler has them
IP6_AT, FRAGMENT6_AT, NOT_IP = 256, 512, 768

(
    FRAGMENT_NONE, FRAGMENT_FIRST, FRAGMENT_LATER, FRAGMENT_FOLLOWED, FRAGMENT_ATOMIC, FRAGMENT_TINY, FRAGMENT_CONFLICT,
) = range(7)  # fmt: skip

ICMP_AT, ICMP6_AT = 256, 512
DETAIL_NONE, DETAIL_CUT, DETAIL_HIDDEN = 768, 769, 770
"""None of these protocols; beyond caplen; not in this fragment."""
