"""What ways to protect a link between two processes cost: a tag alone, encryption with a tag, TLS.

python benchmarks/wire_security.py

Prints µs to protect and to check messages of three sizes, medians on one thread, without sockets; and what it
takes to agree on keys. The choice made of it is in docs/decisions/0025-links-between-machines.md.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import os
import ssl
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from cluster.gateway.security import authority

SIZES = {"2 KiB": 2 << 10, "32 KiB": 32 << 10, "16 MiB": 16 << 20}
BYTES = 64 << 20
MOST = 1000
NONCE = bytes(12)

Way = tuple[Callable[[], object], Callable[[], object]]
"""Protect, and check, one message."""


def median_us(call: Callable[[], object], count: int) -> float:
    times = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def tags(data: bytes, key: bytes) -> Iterator[tuple[str, Way]]:
    def blake() -> bytes:
        return hashlib.blake2b(data, digest_size=16, key=key).digest()

    def sha() -> bytes:
        return hmac.digest(key, data, "sha256")

    gmac = AESGCM(key[:16])
    tag = gmac.encrypt(NONCE, b"", data)
    yield "tag: BLAKE2b, keyed", (blake, blake)
    yield "tag: HMAC-SHA256", (sha, sha)
    yield "tag: GMAC", (lambda: gmac.encrypt(NONCE, b"", data), lambda: gmac.decrypt(NONCE, tag, data))


def ciphers(data: bytes, key: bytes) -> Iterator[tuple[str, Way]]:
    sealed, plain = bytearray(len(data) + 16), bytearray(len(data))
    for name, cipher in (("AES-128-GCM", AESGCM(key[:16])), ("ChaCha20-Poly1305", ChaCha20Poly1305(key))):
        right = cipher.encrypt(NONCE, data, None)
        yield (
            name,
            (
                lambda cipher=cipher: cipher.encrypt_into(NONCE, data, None, sealed),  # type: ignore[misc]
                lambda cipher=cipher, right=right: cipher.decrypt_into(NONCE, right, None, plain),  # type: ignore[misc]
            ),
        )


class Tls:
    """Both ends of a TLS 1.3 connection over memory buffers, as a loop of one's own would use it."""

    def __init__(self, folder: Path) -> None:
        now = datetime.datetime.now(datetime.UTC)
        signer = authority.make_authority(now)
        authority.write(signer, folder / "ca.pem", folder / "ca.key")
        pair = authority.make_certificate(signer, "node", ["localhost"], now)
        authority.write(pair, folder / "node.pem", folder / "node.key")
        self._contexts = []
        for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
            context = ssl.SSLContext(protocol)
            context.load_cert_chain(folder / "node.pem", folder / "node.key")
            context.load_verify_locations(folder / "ca.pem")
            context.verify_mode = ssl.CERT_REQUIRED
            self._contexts.append(context)
        self.connect()

    def connect(self) -> None:
        """A new connection, with its handshake."""
        server, client = self._contexts
        self._wire, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._server = server.wrap_bio(self._wire, back, server_side=True)
        self._client = client.wrap_bio(back, self._wire, server_hostname="localhost")
        waiting = [self._client, self._server]
        while waiting:
            end = waiting.pop(0)
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                waiting.append(end)

    def way(self, data: bytes) -> Way:
        into = memoryview(bytearray(len(data)))
        sent: list[bytes] = []

        def protect() -> None:
            self._client.write(data)
            sent.append(self._wire.read())

        def check() -> None:
            self._wire.write(sent.pop(0))
            got = 0
            with suppress(ssl.SSLWantReadError):
                while got < len(data):
                    got += self._server.read(len(data) - got, into[got:])
            assert got == len(data)

        return protect, check


def agree() -> None:
    """Both sides of an X25519 exchange."""
    ours, theirs = X25519PrivateKey.generate(), X25519PrivateKey.generate()
    assert ours.exchange(theirs.public_key()) == theirs.exchange(ours.public_key())


def main() -> None:
    key = os.urandom(32)
    with tempfile.TemporaryDirectory() as folder:
        tls = Tls(Path(folder))
        for name, size in SIZES.items():
            data = os.urandom(size)
            count = max(5, min(MOST, BYTES // size))
            for way, (protect, check) in (*tags(data, key), *ciphers(data, key), ("TLS 1.3", tls.way(data))):
                first, then = median_us(protect, count), median_us(check, count)
                print(f"{name:>6}  {way:<22} {first:10.1f} {then:10.1f} µs")
        print(f"X25519, both sides      {median_us(agree, 100):10.0f} µs")
        print(f"TLS 1.3, mutual         {median_us(tls.connect, 50):10.0f} µs")


if __name__ == "__main__":
    main()
