"""Names in packets: the question of a DNS message (RFC 1035), the server name of a TLS ClientHello (RFC 8446, RFC 6066).

| kernel | does |
|---|---|
| note_name | gives the flow a name if this packet shows one, and notes the answer code of a DNS response |

A ClientHello counts if its server name is in the segment that it begins in. Names are in lower case; what is not printable is '?'. Of one
that is longer than NAME_BYTES the end is kept. There is room for `flows.names` of them; what finds none is counted.
"""

from __future__ import annotations

from broker.core.flow_layout import NAME, NAME_BYTES, NAMED_DNS, NAMED_TLS, STATE
from stages.flows.lifecycle import NAME_NUMBER
from stages.flows.table import TABLE, count
from stages.jit import kernel
from stages.memory import load8, load16, load32, load64, load_be16, store8, store16, store64
from stages.wire.headers import TCP

assert NAME.fields is not None
assert STATE.fields is not None
assert TABLE.fields is not None
_NAMES_AT, _NAMES_FREE_AT, _N_NAMES, _NAMES_HEAD, _NAMES_LIMIT, _SCRATCH_AT = (
    TABLE.fields[name][1] for name in ("names_at", "names_free_at", "n_names", "names_head", "names_limit", "scratch_at")
)
_NAME_BYTES = NAME.itemsize
_TYPE, _CODE, _KIND, _LEN, _CUT, _TEXT = (NAME.fields[name][1] for name in ("dns_type", "dns_code", "kind", "len", "cut", "text"))
_SEEN, _DROPPED, _IN_USE = (STATE.fields[name][1] for name in ("names_seen", "dropped_names", "names_in_use"))

_DNS_BYTES, _DNS_FLAGS, _DNS_QUESTIONS, _DNS_RESPONSE, _DNS_CODE_BITS = 12, 2, 4, 0x8000, 15
_DNS_PORTS = (53, 5353)
CODE_NOT_SEEN = 255
_LONGEST = 255

_TLS_HANDSHAKE, _TLS_MAJOR, _TLS_HELLO = 22, 3, 1
_TLS_RECORD_BYTES, _TLS_HEAD_BYTES, _TLS_FIXED_BYTES = 5, 4, 34  # of the record, of the message, version and random
_SERVER_NAME, _HOST_NAME = 0, 0
_MAX_EXTENSIONS = 64


@kernel
def _lowered(byte: int) -> int:
    if 65 <= byte <= 90:
        return byte + 32
    return byte if 32 < byte < 127 else 63


@kernel
def _give_name(table: int, entry: int, n_bytes: int, kind: int, type_: int, code: int) -> None:
    """The name in the scratch memory."""
    count(table, _SEEN, 1)
    head = load64(table + _NAMES_HEAD)
    if head >= load64(table + _NAMES_LIMIT):
        count(table, _DROPPED, 1)
        return
    store64(table + _NAMES_HEAD, head + 1)
    number = load32(load64(table + _NAMES_FREE_AT) + 4 * (head % load64(table + _N_NAMES)))
    name, from_ = load64(table + _NAMES_AT) + number * _NAME_BYTES, load64(table + _SCRATCH_AT)
    cut = max(0, n_bytes - NAME_BYTES)
    for i in range(n_bytes - cut):
        store8(name + _TEXT + i, load8(from_ + cut + i))
    store16(name + _TYPE, type_)
    store8(name + _CODE, code)
    store8(name + _KIND, kind)
    store8(name + _LEN, n_bytes - cut)
    store8(name + _CUT, 1 if cut else 0)
    store16(entry + NAME_NUMBER, number + 1)
    count(table, _IN_USE, 1)


@kernel
def _note_dns(table: int, entry: int, message: int, end: int) -> None:
    if end - message < _DNS_BYTES:
        return
    flags, named = load_be16(message + _DNS_FLAGS), load16(entry + NAME_NUMBER)
    code = flags & _DNS_CODE_BITS if flags & _DNS_RESPONSE else CODE_NOT_SEEN
    if named != 0:
        name = load64(table + _NAMES_AT) + (named - 1) * _NAME_BYTES
        if flags & _DNS_RESPONSE and load8(name + _CODE) == CODE_NOT_SEEN and load8(name + _KIND) == NAMED_DNS:
            store8(name + _CODE, code)
        return
    if load_be16(message + _DNS_QUESTIONS) == 0:
        return
    at, out, to = message + _DNS_BYTES, 0, load64(table + _SCRATCH_AT)
    while at < end:
        n = load8(at)
        at += 1
        if n == 0:
            break
        if n > 63 or at + n > end or out + n + 1 > _LONGEST:
            return
        if out > 0:
            store8(to + out, 46)
            out += 1
        for i in range(n):
            store8(to + out + i, _lowered(load8(at + i)))
        out += n
        at += n
    if at + 2 > end or load8(at - 1) != 0:
        return
    if out == 0:
        store8(to, 46)
        out = 1
    _give_name(table, entry, out, NAMED_DNS, load_be16(at), code)


@kernel
def _note_hello(table: int, entry: int, record: int, end: int) -> None:
    at = record + _TLS_RECORD_BYTES + _TLS_HEAD_BYTES + _TLS_FIXED_BYTES
    if at + 1 > end:
        return
    at += 1 + load8(at)  # session id
    if at + 2 > end:
        return
    at += 2 + load_be16(at)  # cipher suites
    if at + 1 > end:
        return
    at += 1 + load8(at)  # compression methods
    if at + 2 > end:
        return
    at += 2
    for _ in range(_MAX_EXTENSIONS):
        if at + 4 > end:
            return
        type_, n_bytes = load_be16(at), load_be16(at + 2)
        at += 4
        if type_ == _SERVER_NAME:
            break
        at += n_bytes
    if type_ != _SERVER_NAME or at + 5 > end or load8(at + 2) != _HOST_NAME:
        return
    n, to = load_be16(at + 3), load64(table + _SCRATCH_AT)
    at += 5
    if n == 0 or n > _LONGEST or at + n > end:
        return
    for i in range(n):
        store8(to + i, _lowered(load8(at + i)))
    _give_name(table, entry, n, NAMED_TLS, 0, CODE_NOT_SEEN)


@kernel
def note_name(table: int, entry: int, protocol: int, ports: int, payload: int, end: int, way: int) -> None:
    """`payload`, `end`: addresses of what TCP or UDP carries; `ports`: of the packet, source | destination << 16."""
    if protocol == TCP:
        if way != 0 or load16(entry + NAME_NUMBER) != 0 or end - payload <= _TLS_RECORD_BYTES or load8(payload) != _TLS_HANDSHAKE:
            return
        if load8(payload + 1) == _TLS_MAJOR and load8(payload + _TLS_RECORD_BYTES) == _TLS_HELLO:
            _note_hello(table, entry, payload, end)
    elif ports & 0xFFFF in _DNS_PORTS or ports >> 16 & 0xFFFF in _DNS_PORTS:
        _note_dns(table, entry, payload, end)
