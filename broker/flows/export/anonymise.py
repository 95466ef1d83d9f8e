"""Addresses replaced so that those which share a prefix still do, by a key: Crypto-PAn (Xu, Fan, Ammar and Moon, "Prefix-Preserving IP
Address Anonymization", ICNP 2002), with AES-128.

Bit n of an address is flipped by the first bit of AES(the n bits before it, then the pad from bit n on). The first half of the key is that
of AES, the second, encrypted by it, the pad. IPv6 is done alike, over 128 bits. Whoever holds the key can undo it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from broker.core.errors import TapmeshError
from broker.core.flow_ring import Rows

_BLOCK = 16
_KNOWN_MOST = 1 << 17
_CHUNK = 1024  # addresses at a time: of IPv6 2 MiB


class Anonymiser:
    """`key`: 32 bytes. TapmeshError: the package `cryptography` is missing."""

    def __init__(self, key: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
        except ImportError:
            raise TapmeshError('flows.anonymise needs the package cryptography: pip install "tapmesh[flows]"') from None
        # ECB is what the method asks for: each block stands for one prefix, and one bit of it is used.
        self._aes = Cipher(algorithms.AES(key[:_BLOCK]), modes.ECB()).encryptor()  # noqa: S305
        self._pad = np.frombuffer(self._aes.update(key[_BLOCK:]), np.uint8)
        self._known: dict[bytes, bytes] = {}  # by address; of IPv4 4 bytes

    def replace(self, rows: Rows) -> None:
        """The addresses of FLOW rows, in place."""
        for version, n_bytes in ((4, 4), (6, 16)):
            chosen = rows["version"] == version
            if not chosen.any():
                continue
            for column in ("source", "destination"):
                addresses = rows[column][chosen]
                addresses[:, 16 - n_bytes :] = self.anonymised(addresses[:, 16 - n_bytes :])
                rows[column][chosen] = addresses

    def anonymised(self, addresses: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8[n, 4 or 16] -> the same shape."""
        n_bytes = addresses.shape[1]
        unique, where = np.unique(np.ascontiguousarray(addresses).view(f"V{n_bytes}")[:, 0], return_inverse=True)
        names = unique.tolist()
        missing = [name for name in names if name not in self._known]
        if len(self._known) + len(missing) > _KNOWN_MOST:
            self._known.clear()
            missing = names
        for at in range(0, len(missing), _CHUNK):
            some = missing[at : at + _CHUNK]
            made = self._encrypted(np.frombuffer(b"".join(some), np.uint8).reshape(len(some), n_bytes)).tobytes()
            self._known.update((name, made[n * n_bytes : (n + 1) * n_bytes]) for n, name in enumerate(some))
        replaced = b"".join([self._known[name] for name in names])
        return np.frombuffer(replaced, np.uint8).reshape(len(names), n_bytes)[where.reshape(-1)]

    def _encrypted(self, addresses: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Each on its own: uint8[n, 4 or 16]."""
        n, n_bytes = addresses.shape
        n_bits = 8 * n_bytes
        # prefix[i, j]: byte j of the mask that keeps the first i bits
        prefix = np.packbits(np.tri(n_bits, n_bits, -1, np.uint8), axis=1)
        blocks = np.empty((n, n_bits, _BLOCK), np.uint8)
        blocks[:, :, n_bytes:] = self._pad[n_bytes:]
        blocks[:, :, :n_bytes] = (addresses[:, None, :] & prefix) | (self._pad[:n_bytes] & ~prefix)
        out = np.frombuffer(self._aes.update(blocks.tobytes()), np.uint8).reshape(n, n_bits, _BLOCK)
        return addresses ^ np.packbits(out[:, :, 0] >> 7, axis=1)
