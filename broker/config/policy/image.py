"""The policy image: one flat piece of memory that kernels walk by address. Offsets only, no pointers, so it works wherever it is mapped.

    IMAGE header | FIELD[N_FIELDS] | MAP rows | TEST rows (the program) | tables

The program is exact and complete: for each map a chain of tests, each with the row to go to when it is false, true or cannot be told.
Jumps go forward only and a negative one is an answer, so it ends. The tables say the same faster: every field of a packet is cut into
classes of values that no test tells apart; `FIELD` says where the class table of a field is and which bits of a packet's key the class
fills. Two packets with the same key get the same answer to every test.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.core.layout import MAPS

MAGIC = 0x3143_4C4F_504D_4154  # "TAMPOLC1" little-endian
VERSION = 1
KEY_WORDS = 3
KEY_BITS = 62  # used of each word, so that it never looks negative
MAX_BYTES = 256 << 20

# What a test asks; what stands together is told apart by one comparison. side, kinds, protocols, hidden: see TEST.
(
    OP_ADDRESS4,  # a: net, b: mask; side, kinds
    OP_SET4,  # a: offset of (first, last) int64 pairs, b: how many; side, kinds
    OP_ADDRESS6,  # a, b: net, c: prefix length; side
    OP_SET6,  # a: offset of (first high, first low, last high, last low) with the sign bit flipped, b: how many; side
    OP_PORT,  # a: first, b: last; side, protocols, hidden
    OP_PORTS,  # a: offset of (first, last) int64 pairs, b: how many; side, protocols, hidden
    OP_PROTOCOL,  # a: value; kinds
    OP_MULTICAST,  # kinds
    OP_PROTOCHAIN,  # a: value; kinds
    OP_FIRST_FRAGMENT,  # hidden
    OP_ETHERTYPE,  # a: value
    OP_TAGGED,
    OP_LLC,  # a: value, b: bytes of it (1 or 2)
    OP_VLAN,  # a: id
    OP_NEVER,  # false; from here on no ethertype is needed
    OP_ALWAYS,  # true
    OP_MAC,  # a: value; side
    OP_GROUP,
    OP_LENGTH,  # a: first, b: last
    OP_COMPARE,  # a: offset of the code, see arithmetic_code.py
) = range(20)

FALSE, TRUE, UNDETERMINED = 0, 1, 2

# answers of a map, as negative jumps
PASS, DROP, NONE, CANNOT_TELL = -1, -2, -3, -4

TEST = np.dtype(
    [
        ("op", "u1"),
        ("depth", "u1"),
        ("side", "u1"),
        ("kinds", "u1"),
        ("protocols", "u1"),
        ("hidden", "u1"),  # what a port test says where a fragment hides the ports: FALSE (libpcap) or UNDETERMINED
        ("pad", "<u2"),
        ("jumps", "<i4", (3,)),  # by answer: FALSE, TRUE, UNDETERMINED
        ("layer", "<i4"),  # 0: as many tags as `depth`; else the steps, see layers.py
        ("a", "<i8"),
        ("b", "<i8"),
        ("c", "<i8"),
        ("pad3", "<i8", (2,)),
    ],
    align=True,
)
assert TEST.itemsize == 64

MAP = np.dtype(
    [
        ("first", "<i8"),  # test; negative: an answer
        ("inputs", "<i8"),  # bit i: input slot i; -1: all
        ("tools", "<i8"),  # verdict bits
        ("slot", "<i8"),
        ("deliver", "<i8"),  # 1: what cannot be told goes to the tools
        ("pad", "<i8", (3,)),
    ],
    align=True,
)

FIELD = np.dtype([("at", "<i8"), ("n", "<i8"), ("word_at", "<i8"), ("shift", "<i8")])
"""`shift` -1: no test asks for this field. `at`, `n`: offset and length of its table, see `FIELDS`."""

# (name, table)
FIELDS = (
    ("input", "u2[65]: class by slot; 64 is any other"),
    ("ethertype", "search: the ethertype behind the tags"),
    ("protocol", "u2[769]: class by KEY.protocol"),
    ("source", "none; holds the class of source4 or source6"),
    ("destination", "none; holds the class of destination4 or destination6"),
    ("source_port", "u2[65536]"),
    ("destination_port", "u2[65536]"),
    ("source4", "trie: u4[65536], then u4[256] each; an entry with bit 31 is the number of the next part"),
    ("destination4", "trie"),
    ("source6", "search of 128 bits"),
    ("destination6", "search of 128 bits"),
    ("length", "search: bytes on the wire"),
    ("source_mac", "search"),
    ("destination_mac", "search"),
    ("group", "none; the group bit itself"),
    ("tag0", "u2[3 * 4096]: class by kind of tag and VLAN id; 0 is no tag"),
    ("tag1", "the same table"),
    ("tag2", "the same table"),
    ("tag3", "the same table"),
    ("predicates", "i8[]: rows of tests whose answers, two bits each, are the field"),
)
"""A `search` table is i8[n] starts, ascending, then i8[n] classes; of 128 bits: high, low (sign bit flipped), classes."""
FIELD_NUMBER = {name: i for i, (name, _) in enumerate(FIELDS)}
N_FIELDS = len(FIELDS)
TRIE_NEXT = 1 << 31

# states of a port, then its class
PORT_NONE, PORT_CUT, PORT_HIDDEN, PORT_SEEN = range(4)

IMAGE = np.dtype(
    [
        ("magic", "<i8"),
        ("version", "<i8"),
        ("size_bytes", "<i8"),
        ("n_maps", "<i8"),
        ("maps_at", "<i8"),
        ("n_tests", "<i8"),
        ("tests_at", "<i8"),
        ("fields_at", "<i8"),
        ("collector", "<i8"),  # verdict bits
        ("depth", "<i8"),  # the deepest tag that any test takes for granted
        ("memo", "<i8"),  # 0: the key would not tell all packets apart, run the program for each
        ("pad", "<i8", (5,)),
    ]
)


class Builder:
    """Collects tables; offsets are final when given."""

    def __init__(self, n_maps: int) -> None:
        self.maps = np.zeros(n_maps, MAP)
        self.fields = np.zeros(N_FIELDS, FIELD)
        self.fields["shift"] = -1
        self.header = np.zeros(1, IMAGE)
        self._maps_at = IMAGE.itemsize + self.fields.nbytes
        self._size = _up(self._maps_at + self.maps.nbytes)
        self._parts: list[tuple[int, bytes]] = []

    def add(self, table: NDArray[Any]) -> int:
        """Offset at which the table will lie."""
        at = self._size
        self._parts.append((at, table.tobytes()))
        self._size = _up(at + table.nbytes)
        return at

    def finish(self) -> bytes:
        head = self.header[0]
        head["magic"], head["version"], head["size_bytes"] = MAGIC, VERSION, self._size
        head["n_maps"], head["maps_at"], head["fields_at"] = len(self.maps), self._maps_at, IMAGE.itemsize
        image = bytearray(self._size)
        for at, part in ((0, self.header.tobytes()), (IMAGE.itemsize, self.fields.tobytes()), (self._maps_at, self.maps.tobytes())):
            image[at : at + len(part)] = part
        for at, part in self._parts:
            image[at : at + len(part)] = part
        return bytes(image)


def _up(n: int) -> int:
    return (n + 63) // 64 * 64


def check_image(image: NDArray[np.uint8]) -> str:
    """What is wrong with the image, or nothing. After this a kernel may follow every jump in it, and every
    map; the tables of fields and sets are taken as the compiler wrote them."""
    if len(image) < IMAGE.itemsize:
        return f"{len(image)} bytes are no policy image"
    head = image[: IMAGE.itemsize].view(IMAGE)[0]
    if int(head["magic"]) != MAGIC or int(head["version"]) != VERSION:
        return f"not a policy image of version {VERSION}"
    if int(head["size_bytes"]) > len(image):
        return f"{len(image)} bytes of a policy image of {int(head['size_bytes'])}"
    n_tests, tests_at, n_maps, maps_at = (int(head[name]) for name in ("n_tests", "tests_at", "n_maps", "maps_at"))
    if not (0 <= n_maps <= MAPS and _inside(image, maps_at, n_maps, MAP.itemsize) and _inside(image, tests_at, n_tests, TEST.itemsize)):
        return "tables outside the policy image"
    tests = image[tests_at : tests_at + n_tests * TEST.itemsize].view(TEST)
    jumps = tests["jumps"].astype(np.int64)
    rows = np.arange(n_tests)[:, None]
    if bool(((jumps >= 0) & ((jumps <= rows) | (jumps >= n_tests)) | (jumps < CANNOT_TELL)).any()):
        return "a jump in the policy image does not go forward"
    maps = image[maps_at : maps_at + n_maps * MAP.itemsize].view(MAP)
    first = maps["first"]
    if bool(((first >= n_tests) | (first < CANNOT_TELL) | (maps["slot"] < 0) | (maps["slot"] >= MAPS)).any()):
        return "a map of the policy image points nowhere"
    return ""


def _inside(image: NDArray[np.uint8], at: int, n: int, size: int) -> bool:
    return n >= 0 and at >= 0 and at % 8 == 0 and at + n * size <= len(image)
