"""The first bytes on a connection that measures: both sides show that they know the survey's secret.

listener: NONCE_BYTES at random ─► other side: its proof over them, then what it wants ─► listener: its proof

A proof is an HMAC-SHA256 by the secret, which nobody sends; it came to both hosts by ssh and is used for one
survey. Who cannot prove gets nothing but the first bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket

from cluster.errors import Unauthenticated

NONCE_BYTES, PROOF_BYTES = 16, 32
ECHO, SINK = b"e", b"s"
"""What the connecting side wants: its messages back, or its bytes counted."""

CLIENT, SERVER = b"asks", b"answers"


def ask(sock: socket.socket, secret: bytes, want: bytes) -> None:
    """As the side that connects. Raises Unauthenticated if the other one is no listener of this survey,
    OSError."""
    nonce = receive(sock, NONCE_BYTES)
    sock.sendall(_proof(secret, CLIENT, nonce, want) + want)
    if not hmac.compare_digest(receive(sock, PROOF_BYTES), _proof(secret, SERVER, nonce, want)):
        raise Unauthenticated("something else answers there; is the address this host's own?")


def answer(sock: socket.socket, secret: bytes) -> bytes:
    """As the side that listens; returns what the other one wants. Raises Unauthenticated, OSError."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    sock.sendall(nonce)
    proof, want = receive(sock, PROOF_BYTES), receive(sock, 1)
    if want not in (ECHO, SINK) or not hmac.compare_digest(proof, _proof(secret, CLIENT, nonce, want)):
        raise Unauthenticated("who has connected does not know the secret")
    sock.sendall(_proof(secret, SERVER, nonce, want))
    return want


def receive(sock: socket.socket, count: int) -> bytes:
    """Exactly so many bytes. Raises ConnectionError if it ends before, and what `recv` does."""
    found = bytearray()
    while len(found) < count:
        more = sock.recv(count - len(found))
        if not more:
            raise ConnectionError("the connection ended early")
        found += more
    return bytes(found)


def _proof(secret: bytes, side: bytes, nonce: bytes, want: bytes) -> bytes:
    return hmac.new(secret, side + nonce + want, hashlib.sha256).digest()
