"""Addresses replaced: IPv4 as nfanon of nfdump does, both as a slow twin with the AES of openssl does; prefixes kept, nothing merged."""

from __future__ import annotations

import ipaddress
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker.core.flow_layout import EXPORT
from broker.core.flow_model import Export
from broker.flows.export.anonymise import Anonymiser
from broker.flows.export.sinks import make_sink
from tests.flows.export.nfdump import needs_nfdump, nfcapd, nfdump
from tests.flows.export.rows import context, some_rows

KEY = bytes(range(100, 132))


def openssl(key: bytes) -> Callable[[bytes], bytes]:
    def encrypted(data: bytes) -> bytes:
        command = ["openssl", "enc", "-aes-128-ecb", "-nopad", "-K", key[:16].hex()]
        return subprocess.run(command, input=data, check=True, capture_output=True).stdout

    return encrypted


def slow_twin(addresses: list[bytes], key: bytes) -> list[bytes]:
    """Bit by bit, as the paper has it."""
    encrypted = openssl(key)
    pad = int.from_bytes(encrypted(key[16:]))
    blocks = b""
    for address in addresses:
        value = int.from_bytes(address) << (128 - 8 * len(address))
        for n in range(8 * len(address)):
            kept = ((1 << n) - 1) << (128 - n)
            blocks += ((value & kept) | (pad & ~kept)).to_bytes(16)
    out = encrypted(blocks)
    made, at = [], 0
    for address in addresses:
        flips = 0
        for _ in range(8 * len(address)):
            flips = flips << 1 | out[at] >> 7
            at += 16
        made.append((int.from_bytes(address) ^ flips).to_bytes(len(address)))
    return made


def anonymised(addresses: list[bytes], key: bytes = KEY) -> list[bytes]:
    array = np.frombuffer(b"".join(addresses), np.uint8).reshape(len(addresses), -1)
    return [row.tobytes() for row in Anonymiser(key).anonymised(array)]


@pytest.mark.parametrize("n_bytes", [4, 16])
def test_as_a_slow_twin_with_another_aes(n_bytes: int) -> None:
    rng = np.random.default_rng(n_bytes)
    addresses = [bytes(n_bytes), b"\xff" * n_bytes, *(rng.bytes(n_bytes) for _ in range(40))]
    addresses += [addresses[5], addresses[0]]  # known by now
    assert anonymised(addresses) == slow_twin(addresses, KEY)


def test_the_example_that_came_with_crypto_pan() -> None:
    key = bytes([21, 34, 23, 141, 51, 164, 207, 128, 19, 10, 91, 22, 73, 144, 125, 16,
                 216, 152, 143, 131, 121, 121, 101, 39, 98, 87, 76, 45, 42, 132, 34, 2])  # fmt: skip
    (made,) = anonymised([ipaddress.ip_address("128.11.68.132").packed], key)
    assert str(ipaddress.ip_address(made)) == "135.242.180.132"


@pytest.mark.parametrize("n_bytes", [4, 16])
def test_as_many_bits_as_were_common_are_common(n_bytes: int) -> None:
    rng = np.random.default_rng(1)
    one = int.from_bytes(rng.bytes(n_bytes))
    bits = 8 * n_bytes
    others = [one ^ (1 << (bits - 1 - n)) | 0 for n in range(bits)]  # the first n bits are those of `one`
    made = [int.from_bytes(address) for address in anonymised([value.to_bytes(n_bytes) for value in (one, *others)])]
    assert [bits - (made[0] ^ other).bit_length() for other in made[1:]] == list(range(bits))


def test_rows_keep_all_but_their_addresses() -> None:
    rows = some_rows(300)
    rows["source"][::2] = rows["source"][rows["version"] == 4][0]  # one that comes often
    rows["version"][::2] = 4
    rows["destination"][::2, :12] = 0
    before = rows.copy()
    Anonymiser(KEY).replace(rows)
    for column in ("source", "destination"):
        for version, n_bytes in ((4, 4), (6, 16)):
            chosen = before["version"] == version
            addresses = [address.tobytes()[16 - n_bytes :] for address in before[column][chosen]]
            assert [address.tobytes()[16 - n_bytes :] for address in rows[column][chosen]] == anonymised(addresses)
            assert (rows[column][chosen, : 16 - n_bytes] == 0).all()
        before[column] = rows[column]
    assert all(np.array_equal(rows[name], before[name]) for name in rows.dtype.names)


@needs_nfdump
def test_ipv4_as_nfanon_does(tmp_path: Path) -> None:
    """IPv6 nfanon does its own way: it keeps one bit too many, so that two addresses may become one."""
    rows = some_rows(60, version=4)
    rows["packets"][:, 0] = 1 + np.arange(len(rows))

    def deliver(port: int) -> None:
        sink = make_sink(Export("x", "ipfix", address="127.0.0.1", port=port), np.zeros(1, EXPORT)[0], context())
        sink.tick(time.time_ns())
        sink.take(rows)
        sink.close(5)

    path, made = nfcapd(tmp_path / "flows", deliver), tmp_path / "made"
    subprocess.run(["nfanon", "-q", "-r", str(path), "-w", str(made), "-K", f"0x{KEY.hex()}"], check=True, capture_output=True)
    found = {flow["in_packets"]: (flow["src4_addr"], flow["dst4_addr"]) for flow in nfdump(made)}
    Anonymiser(KEY).replace(rows)
    ends = [[str(ipaddress.ip_address(address.tobytes()[12:])) for address in rows[name]] for name in ("source", "destination")]
    assert found == dict(zip(rows["packets"][:, 0].tolist(), zip(*ends, strict=True), strict=True))
