"""libpcap through ctypes: the independent reader that every capture file is compared with."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NANO = 1  # PCAP_TSTAMP_PRECISION_NANO
ETHERNET = 1  # DLT_EN10MB


class _Header(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("frac", ctypes.c_long), ("caplen", ctypes.c_uint32), ("len", ctypes.c_uint32))


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


@functools.cache
def _library() -> Any:
    name = ctypes.util.find_library("pcap") or "libpcap.so.0.8"
    try:
        library = ctypes.CDLL(name)
    except OSError:
        pytest.skip("libpcap is not installed")
    library.pcap_open_offline_with_tstamp_precision.restype = ctypes.c_void_p
    library.pcap_open_offline_with_tstamp_precision.argtypes = (ctypes.c_char_p, ctypes.c_uint, ctypes.c_char_p)
    library.pcap_next_ex.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.POINTER(_Header)), ctypes.POINTER(ctypes.c_void_p))
    library.pcap_geterr.restype = ctypes.c_char_p
    library.pcap_geterr.argtypes = library.pcap_close.argtypes = library.pcap_datalink.argtypes = (ctypes.c_void_p,)
    return library


def read(path: Path) -> Reading:
    """Everything libpcap gives of `path`, times in nanoseconds."""
    library, reading = _library(), Reading()
    message = ctypes.create_string_buffer(256)
    handle = library.pcap_open_offline_with_tstamp_precision(str(path).encode(), NANO, message)
    if not handle:
        return Reading(error=message.value.decode(errors="replace"), refused=True)
    magic = path.read_bytes()[:4]
    unit_ns = 1 if magic in (b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d") else 1000
    header, data = ctypes.POINTER(_Header)(), ctypes.c_void_p()
    reading.datalink = library.pcap_datalink(handle)
    while (status := library.pcap_next_ex(handle, header, data)) == 1:
        h = header.contents
        seconds, fraction = int(h.sec), int(h.frac)
        if magic != b"\x0a\x0d\x0d\x0a":  # libpcap takes the 32-bit fields of pcap as signed in one byte order and as unsigned in the other
            seconds %= 2**32
            fraction = fraction // unit_ns % 2**32 * unit_ns
        ts_ns = seconds * 10**9 + fraction
        reading.records.append(Record(ts_ns, h.len, ctypes.string_at(data, h.caplen)))
    if status == -1:
        reading.error = library.pcap_geterr(handle).decode(errors="replace")
    library.pcap_close(handle)
    return reading
