"""KEY: what one pass over a packet's headers finds, one cache line a packet, host byte order.

`source` and `destination` are (high, low) of an IPv6 address; IPv4 and ARP addresses are in the low word, the high one is 0.
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
            "detail",  # the TCP flags, 256 + ICMP type, 512 + ICMPv6 type, or DETAIL_*
        ],
        "formats": ["<i8", "<i8", "<i8", "<i8", "<i8", "<u4", "<u4", "<u2", "<u2", "<u2", "<u2", "u1", "u1", "u1", "u1", "u1", "u1", "<u2"],
        "offsets": [0, 8, 16, 24, 32, 40, 44, 48, 50, 52, 54, 56, 57, 58, 59, 60, 61, 62],
        "itemsize": 64,
    }
)  # fmt: skip

KIND_OTHER, KIND_IP, KIND_IP6, KIND_ARP = range(4)

# as broker.config.policy.image has them: states of a port
PORT_NONE, PORT_CUT, PORT_HIDDEN, PORT_SEEN = range(4)

# as broker.config.policy.compiler has them
IP6_AT, FRAGMENT6_AT, NOT_IP = 256, 512, 768

FRAGMENT_NONE, FRAGMENT_FIRST, FRAGMENT_LATER, FRAGMENT_FOLLOWED, FRAGMENT_ATOMIC, FRAGMENT_TINY, FRAGMENT_CONFLICT = range(7)
DETAIL_NONE, DETAIL_CUT, DETAIL_HIDDEN = range(768, 771)
DETAIL_ICMP, DETAIL_ICMP6 = 256, 512
