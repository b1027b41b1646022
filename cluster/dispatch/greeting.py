"""How two processes meet: who they are, and that both know the cluster's key, which neither says.

    client                            server
    HELLO {identity, nonce}     ──►
                                ◄──   CHALLENGE {nonce, proof}    where there is a key
    PROOF {proof}               ──►
                                ◄──   WELCOME {identity}

A proof is HMAC-SHA256 under the cluster's key of the side that shows it, both nonces and the client's
identity, so that neither side's proof can be sent back to it, nor used again. Until the client's proof has
come, a server says nothing of itself: not what it serves, nor its version. The frames behind the greeting are
not authenticated one by one: on the way between machines somebody who can change packets could change them.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any

import msgpack

from cluster.dispatch.frames import Frame, Header
from cluster.dispatch.handshake import Identity, error_of
from cluster.dispatch.kinds import Kind
from cluster.errors import ProtocolError

NONCE_BYTES = 32
SERVER, CLIENT = b"server", b"client"
STRANGER = "the peer does not know the cluster's key"


class Greeting:
    """The client's side of one connection. `server` is known once `answer` has returned None."""

    def __init__(self, identity: Identity) -> None:
        self.server: Identity | None = None
        self._identity = identity
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._challenged = False

    def hello(self) -> Header:
        return self._identity.to_header() | {"nonce": self._nonce}

    def answer(self, frame: Frame) -> Header | None:
        """Header of the PROOF that is due; None if the server is accepted and nothing more is.

        Raises ProtocolError for a server that is not of this cluster or does not fit, and what it refused
        with.
        """
        if frame.kind is Kind.REFUSED:
            raise error_of(frame.header)
        if frame.kind is Kind.CHALLENGE and not self._challenged:
            return self._prove(frame.header)
        if frame.kind is not Kind.WELCOME:
            raise ProtocolError(f"HELLO was answered with {frame.kind.name}")
        if self._identity.key and not self._challenged:
            raise ProtocolError(f"{STRANGER}: it did not ask for ours")
        self.server = Identity.from_header(frame.header)
        self._identity.check(self.server)
        return None

    def _prove(self, header: Any) -> Header:
        self._challenged = True
        key = self._identity.key
        if not key:
            raise ProtocolError("the server asks for the cluster's key; run this where `moemesh up` did")
        theirs, proof = _bytes(header, "nonce"), _bytes(header, "proof")
        mine = self._identity.to_header()
        if not hmac.compare_digest(proof, _proof(key, SERVER, self._nonce, theirs, mine)):
            raise ProtocolError(STRANGER)
        return {"proof": _proof(key, CLIENT, self._nonce, theirs, mine)}


class Reception:
    """The server's side of one connection. `peer` is known once `take` has returned a WELCOME."""

    def __init__(self, identity: Identity) -> None:
        self.peer: Identity | None = None
        self._identity = identity
        self._nonce = b""
        self._expected = b""
        self._claimed: Identity | None = None

    def take(self, frame: Frame) -> tuple[Kind, Header]:
        """What to answer to a HELLO or a PROOF.

        Raises ProtocolError for a peer that is not of this cluster or does not fit.
        """
        if frame.kind is Kind.PROOF:
            return self._check(frame.header)
        claimed = Identity.from_header(frame.header)
        if not self._identity.key:
            return self._welcome(claimed)
        self._claimed = claimed
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        theirs, identity = _bytes(frame.header, "nonce"), claimed.to_header()
        self._expected = _proof(self._identity.key, CLIENT, theirs, self._nonce, identity)
        proof = _proof(self._identity.key, SERVER, theirs, self._nonce, identity)
        return Kind.CHALLENGE, {"nonce": self._nonce, "proof": proof}

    def _check(self, header: Any) -> tuple[Kind, Header]:
        claimed, self._claimed = self._claimed, None  # a challenge is good for one attempt
        if claimed is None or not hmac.compare_digest(_bytes(header, "proof"), self._expected):
            raise ProtocolError(STRANGER)
        return self._welcome(claimed)

    def _welcome(self, peer: Identity) -> tuple[Kind, Header]:
        self._identity.check(peer)
        self.peer = peer
        return Kind.WELCOME, self._identity.to_header()


def _proof(key: bytes, side: bytes, client: bytes, server: bytes, identity: dict[str, Any]) -> bytes:
    """client, server: nonces. Of fixed length or, for the last one, at the end: no two inputs look alike."""
    message = side + client + server + msgpack.packb(sorted(identity.items()))
    return hmac.new(key, message, hashlib.sha256).digest()


def _bytes(header: Any, name: str) -> bytes:
    """32 of them: nonces and proofs are equally long."""
    value = header.get(name) if isinstance(header, dict) else None
    if not isinstance(value, bytes) or len(value) != NONCE_BYTES:
        raise ProtocolError(f"{STRANGER}: its greeting has no {name}")
    return value
