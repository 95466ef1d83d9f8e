"""The policy image: one flat piece of memory that kernels walk by address. Offsets only, no pointers, so it works wherever it is mapped.

    IMAGE header | FIELD[N_FIELDS] | MAP rows | RULE rows | code | TEST rows | terms | tables

RULE rows, code and TEST rows are exact and complete: for each rule a postfix sequence of tests and operators. Skips go forward only, so it
ends. The rest says the same faster: every field of a packet is cut into classes of values that no test tells apart; `FIELD` says where the
class table of a field is and which bits of a packet's key the class fills. Packets with equal keys get equal answers to every test that is
no predicate. For a key not met before, `FIELD` also has for each class a row of bits, one a term (an alternative of a rule): a rule whose
terms are all 0 in the AND of a packet's rows is false for it, so only the others are run.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker.core.layout import MAPS

MAGIC = 0x3143_4C4F_504D_4154  # "TAMPOLC1" little-endian
VERSION = 5
KEY_WORDS = 3
KEY_BITS = 62  # used of each word, so that it never looks negative
MAX_BYTES = 128 << 20  # two of them while a reload goes on, in an agent of 512 MB

# What a test asks; what stands together is told apart by one comparison. side, kinds, protocols: see TEST.
(
    OP_ADDRESS4,  # a: net, b: mask; side, kinds
    OP_SET4,  # a: offset of (first, last) int64 pairs, b: how many; side, kinds
    OP_ADDRESS6,  # a, b: net, c: prefix length; side
    OP_SET6,  # a: offset of (first high, first low, last high, last low) with the sign bit flipped, b: how many; side
    OP_PORT,  # a: first, b: last; side, protocols
    OP_PORTS,  # a: offset of (first, last) int64 pairs, b: how many; side, protocols
    OP_DETAIL,  # a: first, b: last, c: protocol; kinds
    OP_DETAILS,  # a: offset of (first, last) int64 pairs, b: how many, c: protocol; kinds
    OP_PROTOCOL,  # a: value; kinds
    OP_MULTICAST,  # kinds
    OP_PROTOCHAIN,  # a: value; kinds
    OP_FIRST_FRAGMENT,
    OP_FIELD,  # a: offset of (first, last) int64 pairs, b: how many, c: which field, see tree.py; kinds
    OP_TUNNEL,  # c: kind of tunnel
    OP_TUNNEL_ID,  # a: offset of (first, last) int64 pairs, b: how many, c: kind of tunnel
    OP_ETHERTYPE,  # a: value
    OP_TAGGED,
    OP_LLC,  # a: value, b: bytes of it (1 or 2)
    OP_VLAN,  # a: first, b: last
    OP_VLANS,  # a: offset of (first, last) int64 pairs, b: how many
    OP_NEVER,  # false; from here on no ethertype is needed
    OP_ALWAYS,  # true
    OP_MAC,  # a: value, b: mask; side
    OP_GROUP,
    OP_LENGTH,  # a: first, b: last
    OP_COMPARE,  # a: offset of the code, see arithmetic_code.py
) = range(26)

FALSE, UNDETERMINED, TRUE = 0, 1, 2
"""In this order AND is the smaller one of two, OR the larger one, and NOT is 2 - x (Kleene's logic)."""

# A word of code: what to do, and above it a number: a row of TEST, or how many words to go forward.
CODE_TEST, CODE_AND, CODE_OR, CODE_NOT, CODE_SKIP_FALSE, CODE_SKIP_TRUE = range(6)
CODE_SHIFT = 28
MAX_STACK = 512  # of values while a rule is run; twice what nesting can need

TEST = np.dtype(
    [
        ("op", "u1"),
        ("depth", "u1"),
        ("side", "u1"),
        ("kinds", "u1"),
        ("protocols", "u1"),
        ("pad", "u1", (3,)),
        ("predicate", "<i4"),  # its number, if no class of values answers it; else -1
        ("layer", "<i4"),  # 0: as many tags as `depth`; else the steps, see layers.py
        ("a", "<i8"),
        ("b", "<i8"),
        ("c", "<i8"),
        ("pad3", "<i8", (3,)),
    ],
    align=True,
)
assert TEST.itemsize == 64

RULE = np.dtype([("first", "<u4"), ("n", "<u4"), ("action", "<u4"), ("pad", "<u4")])
"""`first`, `n`: words of code. `action`: PASS or DROP."""
PASS, DROP = 1, 2

MAP = np.dtype(
    [
        ("first_rule", "<i8"),
        ("n_rules", "<i8"),
        ("first_term", "<i8"),
        ("n_terms", "<i8"),
        ("inputs", "<i8"),  # bit i: input slot i; -1: all
        ("tools", "<i8"),  # verdict bits
        ("slot", "<i8"),
        ("mode", "<i8"),  # MODE_*: what becomes of a rule that cannot be told
    ],
    align=True,
)
MODE_DELIVER, MODE_DROP, MODE_LIBPCAP = range(3)

CHUNK_TERMS = 512  # a cache line of bits

FIELD = np.dtype(
    [
        ("at", "<i8"),
        ("n", "<i8"),
        ("word_at", "<i8"),
        ("shift", "<i8"),
        ("rows_at", "<i8"),
        ("mask", "<i8"),
        ("of_ip", "<i8"),  # ethertype: the values of IPv4 and IPv6
        ("of_ip6", "<i8"),
    ]
)
"""`shift` and `word_at` -1: no test asks for this field. `at`, `n`: offset and length of its table, see `FIELDS`. `mask`: of its bits in
the key, when shifted down. `rows_at`: offset of u4[values, n_chunks]: the terms that a packet with this value may meet, as chunks."""

# Values of a field in the key that are no class; classes follow. A packet whose value is UNKNOWN is never remembered.
NONE, CUT, HIDDEN, UNKNOWN, FIRST_CLASS = range(5)

# (name, table)
FIELDS = (
    ("input", "u2[65]: value by slot; 64 is any other"),
    ("ethertype", "search: the ethertype behind the tags"),
    ("protocol", "u2[769]: by KEY.protocol"),
    ("source", "none; holds the value of source4 or source6"),
    ("destination", "none; holds the value of destination4 or destination6"),
    ("source_port", "u2[2, 65536]: the second of ports that libpcap does not see: of a fragment whose first is known, or behind a header"),
    ("destination_port", "u2[2, 65536]"),
    ("detail", "u2[2, 768]: by KEY.detail; the second as with ports"),
    ("source4", "trie: u4[65536], then u4[256] each; an entry with bit 31 is the number of the next part"),
    ("destination4", "trie"),
    ("source6", "search of 128 bits"),
    ("destination6", "search of 128 bits"),
    ("length", "search: bytes on the wire"),
    ("source_mac", "search"),
    ("destination_mac", "search"),
    ("group", "none; the group bit itself"),
    ("tag0", "u2[3 * 4096]: by kind of tag and VLAN id; NONE is no tag"),
    ("tag1", "the same table"),
    ("tag2", "the same table"),
    ("tag3", "the same table"),
)
"""All tables hold values of the key. A `search` table is i8[n] starts, ascending, then i8[n] values; of 128 bits: high, low (sign bit
flipped), values."""
FIELD_NUMBER = {name: i for i, (name, _) in enumerate(FIELDS)}
N_FIELDS = len(FIELDS)
TRIE_NEXT = 1 << 31

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
        ("n_rules", "<i8"),
        ("rules_at", "<i8"),
        ("n_code", "<i8"),
        ("code_at", "<i8"),
        ("n_terms", "<i8"),
        ("terms_at", "<i8"),  # u4[n_terms]: the rule that each is of
        ("n_chunks", "<i8"),  # of CHUNK_TERMS terms each: the length of a row
        ("chunks_at", "<i8"),  # u8[][CHUNK_TERMS / 64]: bits of terms; rows share those that are equal, and number 0 is empty
        ("n_predicates", "<i8"),
        ("predicates_at", "<i8"),  # u4[n_predicates]: the row of TEST that each is
        ("n_prefilters", "<i8"),
        ("prefilters_at", "<i8"),  # PREFILTER rows
        ("pad", "<i8", (2,)),
    ]
)

PREFILTER = np.dtype([("input", "<i8"), ("at", "<i8"), ("n_bytes", "<i8")])
"""What the kernel may be asked before it captures packets of an input slot: see prefilter.py."""


class Builder:
    """Collects tables; offsets are final when given."""

    def __init__(self, n_maps: int) -> None:
        self.maps = np.zeros(n_maps, MAP)
        self.fields = np.zeros(N_FIELDS, FIELD)
        self.fields["shift"] = self.fields["word_at"] = -1
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

    @property
    def size_bytes(self) -> int:
        """Of the image, so far."""
        return self._size

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
    """What is wrong with the image, or nothing. After this a kernel may run every rule in it; the tables of fields and
    sets are taken as the compiler wrote them."""
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
    tables = {"rules": (RULE.itemsize, 1 << 24), "code": (4, 1 << CODE_SHIFT), "terms": (4, 1 << 24), "predicates": (4, 1 << 24)}
    for name, (size, most) in tables.items():
        if not 0 <= int(head[f"n_{name}"]) < most or not _inside(image, int(head[f"{name}_at"]), int(head[f"n_{name}"]), size):
            return "tables outside the policy image"
    return _wrong_code(image, head) or _wrong_maps(image, head)


def prefilter_of(image: NDArray[np.uint8], slot: int) -> bytes:
    """The body of the program for an input; empty: there is none."""
    for row in _part(image, image[: IMAGE.itemsize].view(IMAGE)[0], "prefilters", PREFILTER):
        if int(row["input"]) == slot:
            return image[int(row["at"]) : int(row["at"] + row["n_bytes"])].tobytes()
    return b""


def _part(image: NDArray[np.uint8], head: np.void, name: str, dtype: Any) -> NDArray[Any]:
    at, n = int(head[f"{name}_at"]), int(head[f"n_{name}"])
    return image[at : at + n * np.dtype(dtype).itemsize].view(dtype)


def _wrong_code(image: NDArray[np.uint8], head: np.void) -> str:
    code, rules = _part(image, head, "code", np.uint32).astype(np.int64), _part(image, head, "rules", RULE)
    what, number = code >> CODE_SHIFT, code & ((1 << CODE_SHIFT) - 1)
    is_skip = (what == CODE_SKIP_FALSE) | (what == CODE_SKIP_TRUE)
    if bool((what > CODE_SKIP_TRUE).any() or ((what == CODE_TEST) & (number >= int(head["n_tests"]))).any()):
        return "a word of code in the policy image means nothing"
    if bool((is_skip & ((number == 0) | (np.arange(len(code)) + number > len(code)))).any()):
        return "a skip in the policy image does not go forward"
    if bool((_part(image, head, "predicates", np.uint32) >= int(head["n_tests"])).any()):
        return "a predicate of the policy image is no test"
    if bool((rules["first"].astype(np.int64) + rules["n"] > len(code)).any()):
        return "a rule of the policy image has no code"
    return ""


def _wrong_maps(image: NDArray[np.uint8], head: np.void) -> str:
    maps, n_terms = _part(image, head, "maps", MAP), int(head["n_terms"])
    terms = _part(image, head, "terms", np.uint32).astype(np.int64)
    for row in maps:
        first_rule, n_rules, first_term, n = (int(row[name]) for name in ("first_rule", "n_rules", "first_term", "n_terms"))
        if first_rule < 0 or n_rules < 0 or first_rule + n_rules > int(head["n_rules"]) or not 0 <= int(row["slot"]) < MAPS:
            return "a map of the policy image points nowhere"
        of_map = terms[first_term : first_term + n]
        if first_term < 0 or n < 0 or first_term + n > n_terms or bool(((of_map < first_rule) | (of_map >= first_rule + n_rules)).any()):
            return "a map of the policy image points nowhere"
    return "" if int(head["n_chunks"]) * CHUNK_TERMS >= n_terms else "a map of the policy image points nowhere"


def _inside(image: NDArray[np.uint8], at: int, n: int, size: int) -> bool:
    return n >= 0 and at >= 0 and at % 8 == 0 and at + n * size <= len(image)
