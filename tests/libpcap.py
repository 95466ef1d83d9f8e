"""libpcap by ctypes: the oracle for what an expression means. Reads capture files too, so that no reader of ours is in the way."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

EN10MB = 1
UNKNOWN_NETMASK = 0xFFFFFFFF
SNAPLEN = 262_144


class _Program(ctypes.Structure):
    _fields_ = (("n", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _Header(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("micros", ctypes.c_long), ("caplen", ctypes.c_uint32), ("wirelen", ctypes.c_uint32))


@functools.cache
def _library() -> ctypes.CDLL | None:
    for name in ("libpcap.so.0.8", ctypes.util.find_library("pcap")):
        try:
            lib = ctypes.CDLL(name or "libpcap.so.1")
        except OSError:
            continue
        lib.pcap_open_dead.restype = ctypes.c_void_p
        lib.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
        lib.pcap_compile.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Program), ctypes.c_char_p, ctypes.c_int, ctypes.c_uint32)
        lib.pcap_geterr.restype = ctypes.c_char_p
        lib.pcap_geterr.argtypes = (ctypes.c_void_p,)
        lib.pcap_offline_filter.argtypes = (ctypes.POINTER(_Program), ctypes.POINTER(_Header), ctypes.c_char_p)
        lib.pcap_freecode.argtypes = (ctypes.POINTER(_Program),)
        lib.pcap_open_offline.restype = ctypes.c_void_p
        lib.pcap_open_offline.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
        lib.pcap_next_ex.argtypes = (ctypes.c_void_p, ctypes.POINTER(ctypes.POINTER(_Header)), ctypes.POINTER(ctypes.c_void_p))
        lib.pcap_datalink.argtypes = lib.pcap_close.argtypes = (ctypes.c_void_p,)
        return lib
    return None


needs_libpcap = pytest.mark.skipif(_library() is None, reason="libpcap is not installed")


class RefusedError(Exception):
    """libpcap does not take the expression."""


@functools.cache
def _dead() -> ctypes.c_void_p:
    lib = _library()
    assert lib is not None
    return ctypes.c_void_p(lib.pcap_open_dead(EN10MB, SNAPLEN))


class Filter:
    """One expression, compiled for Ethernet with an unknown netmask. `optimize` as tcpdump does, unless told otherwise.

    What the optimizer finds to reject all packets is no mistake here: it rejects them.
    """

    def __init__(self, expression: str, *, optimize: bool = True) -> None:
        lib = _library()
        assert lib is not None
        self._lib = lib
        self._program = _Program()
        if lib.pcap_compile(_dead(), ctypes.byref(self._program), expression.encode(), int(optimize), UNKNOWN_NETMASK) != 0:
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
class Captured:
    data: bytes
    wirelen: int


def read(path: Path, limit: int) -> Iterator[Captured]:
    """The first packets of an Ethernet capture; nothing from what libpcap refuses or what is not Ethernet. Stops where it stops."""
    lib = _library()
    assert lib is not None
    error = ctypes.create_string_buffer(256)
    handle = lib.pcap_open_offline(str(path).encode(), error)
    if not handle:
        return
    try:
        if lib.pcap_datalink(handle) != EN10MB:
            return
        header, data = ctypes.POINTER(_Header)(), ctypes.c_void_p()
        for _ in range(limit):
            if lib.pcap_next_ex(handle, ctypes.byref(header), ctypes.byref(data)) != 1:
                return
            caplen = header.contents.caplen
            yield Captured(ctypes.string_at(data.value, caplen) if caplen else b"", header.contents.wirelen)
    finally:
        lib.pcap_close(handle)
