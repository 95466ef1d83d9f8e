"""libpcap by ctypes: the oracle for what an expression means and for what a capture file holds, so that no reader of ours is in the way."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ETHERNET = 1  # DLT_EN10MB
SNAPLEN = 262_144
_UNKNOWN_NETMASK = 0xFFFFFFFF
_NANOSECONDS = 1  # PCAP_TSTAMP_PRECISION_NANO


class _Program(ctypes.Structure):
    _fields_ = (("n", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _Header(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("fraction", ctypes.c_long), ("caplen", ctypes.c_uint32), ("wirelen", ctypes.c_uint32))


@functools.cache
def _find() -> ctypes.CDLL | None:
    for name in ("libpcap.so.0.8", ctypes.util.find_library("pcap")):
        try:
            lib = ctypes.CDLL(name or "libpcap.so.1")
        except OSError:
            continue
        lib.pcap_open_dead.restype = lib.pcap_open_offline_with_tstamp_precision.restype = ctypes.c_void_p
        lib.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
        lib.pcap_compile.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32)
        lib.pcap_geterr.restype = ctypes.c_char_p
        lib.pcap_geterr.argtypes = lib.pcap_datalink.argtypes = lib.pcap_close.argtypes = (ctypes.c_void_p,)
        lib.pcap_offline_filter.argtypes = (ctypes.POINTER(_Program), ctypes.POINTER(_Header), ctypes.c_char_p)
        lib.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
        lib.pcap_open_offline_with_tstamp_precision.argtypes = (ctypes.c_char_p, ctypes.c_uint, ctypes.c_char_p)
        lib.pcap_next_ex.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.POINTER(_Header)), ctypes.POINTER(ctypes.c_void_p))
        return lib
    return None


needs_libpcap = pytest.mark.skipif(_find() is None, reason="libpcap is not installed")


def _library() -> ctypes.CDLL:
    lib = _find()
    if lib is None:
        pytest.skip("libpcap is not installed")
    return lib


class RefusedError(Exception):
    """libpcap does not take the expression."""


@functools.cache
def _dead() -> ctypes.c_void_p:
    return ctypes.c_void_p(_library().pcap_open_dead(ETHERNET, SNAPLEN))


class Filter:
    """One expression, compiled for Ethernet with an unknown netmask. `optimize` as tcpdump does, unless told otherwise.

    What the optimizer finds to reject all packets is no mistake here: it rejects them.
    """

    def __init__(self, expression: str, *, optimize: bool = True) -> None:
        self._program = _Program()
        lib = self._lib = _library()
        if lib.pcap_compile(_dead(), ctypes.byref(self._program), expression.encode(), int(optimize), _UNKNOWN_NETMASK) != 0:
            reason = lib.pcap_geterr(_dead()).decode()
            if reason != "expression rejects all packets":
                raise RefusedError(reason)

    def __del__(self) -> None:
        if self._program.instructions:
            self._lib.pcap_freecode(ctypes.byref(self._program))

    def __call__(self, data: bytes, wirelen: int) -> bool:
        header = _Header(0, 0, len(data), wirelen)
        if not self._program.instructions:
            return False
        return bool(self._lib.pcap_offline_filter(ctypes.byref(self._program), ctypes.byref(header), data))


@dataclass(frozen=True)
class Record:
    ts_ns: int
    wirelen: int
    data: bytes


@dataclass
class Reading:
    """What libpcap made of a file: its packets up to its error, "" when there is none; `refused`: it did not even open it."""

    records: list[Record] = field(default_factory=list)
    error: str = ""
    refused: bool = False
    datalink: int = -1


def read(path: Path, limit: int | None = None) -> Reading:
    """The packets that libpcap gives of `path`, all or the first `limit`, times in nanoseconds."""
    lib, reading = _library(), Reading()
    message = ctypes.create_string_buffer(256)
    handle = lib.pcap_open_offline_with_tstamp_precision(str(path).encode(), _NANOSECONDS, message)
    if not handle:
        return Reading(error=message.value.decode(errors="replace"), refused=True)
    with path.open("rb") as file:
        magic = file.read(4)
    unit_ns = 1 if magic in (b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d") else 1000
    header, data = ctypes.POINTER(_Header)(), ctypes.c_void_p()
    reading.datalink = lib.pcap_datalink(handle)
    status = 1
    while len(reading.records) != limit and (status := lib.pcap_next_ex(handle, header, data)) == 1:
        h = header.contents
        seconds, fraction = int(h.seconds), int(h.fraction)
        if magic != b"\x0a\x0d\x0d\x0a":  # libpcap takes the 32-bit fields of pcap as signed in one byte order and as unsigned in the other
            seconds %= 2**32
            fraction = fraction // unit_ns % 2**32 * unit_ns
        reading.records.append(Record(seconds * 10**9 + fraction, h.wirelen, ctypes.string_at(data, h.caplen) if h.caplen else b""))
    if status == -1:
        reading.error = lib.pcap_geterr(handle).decode(errors="replace")
    lib.pcap_close(handle)
    return reading


def read_ethernet(path: Path, limit: int) -> list[Record]:
    """The first packets of an Ethernet capture, as far as libpcap reads it; nothing of any other."""
    reading = read(path, limit)
    return reading.records if reading.datalink == ETHERNET else []
