"""How two processes meet: who they are, and that both know the cluster's key, which neither says.

    client                            server
    HELLO {identity, nonce}     ──►
                                ◄──   CHALLENGE {nonce, proof, share}    where there is a key
    PROOF {proof, share}        ──►
                                ◄──   WELCOME {identity}

A proof is HMAC-SHA256 under the cluster's key of the side that shows it, both nonces and the client's
identity, so that neither side's proof can be sent back to it, nor used again. Until the client's proof has
come, a server says nothing of itself: not what it serves, nor its version.

A link is sealed (cluster/dispatch/seal.py) if one of the two wants it: a client says so in its HELLO, a
server by its share, which is there on such links alone. From the WELCOME on everything is then in records.
Proofs cover the shares, and a side that wants a seal goes no further without one, so nobody between the two
can talk them out of it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import socket
from typing import TYPE_CHECKING, Any

import msgpack

from cluster.config import WireSecurity
from cluster.dispatch.frames import Frame, Header
from cluster.dispatch.handshake import Identity, error_of
from cluster.dispatch.kinds import Kind
from cluster.dispatch.tcp import leaves_the_machine
from cluster.errors import ProtocolError

if TYPE_CHECKING:
    from cluster.dispatch.seal import Session, Share

NONCE_BYTES = 32
SERVER, CLIENT = b"server", b"client"
STRANGER = "the peer does not know the cluster's key"


def must_seal(identity: Identity, sock: socket.socket) -> bool:
    """Whether `identity` wants the link behind a connected socket sealed. Raises OSError if it is gone."""
    return identity.security is WireSecurity.always or leaves_the_machine(sock)


class Greeting:
    """The client's side of one connection. `server`, and the `protocol` to speak with it, are known once
    `answer` has returned None.

    session: of a sealed link, known once `answer` has returned a PROOF: what follows it is sealed.
    """

    def __init__(self, identity: Identity, sealed: bool = False) -> None:
        """sealed: this side wants the link to be."""
        self.server: Identity | None = None
        self.protocol = identity.protocol
        self.session: Session | None = None
        self._identity = identity
        self._sealed = sealed
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._challenged = False

    def hello(self) -> Header:
        """Raises ProtocolError where a seal is wanted and there is no key for it."""
        hello = self._identity.to_header() | {"nonce": self._nonce}
        if self._sealed:
            _require_key(self._identity)
            hello["sealed"] = True
        return hello

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
        self.protocol = self._identity.check(self.server)
        return None

    def _prove(self, header: Any) -> Header:
        self._challenged = True
        key = self._identity.key
        if not key:
            raise ProtocolError("the server asks for the cluster's key; run this where `moemesh up` did")
        theirs, proof = _bytes(header, "nonce"), _bytes(header, "proof")
        said = self._nonce + theirs + _packed(self._identity)
        share = _bytes(header, "share") if "share" in header else b""
        if not hmac.compare_digest(proof, _proof(key, SERVER, said + share)):
            raise ProtocolError(STRANGER)
        if not share:
            if self._sealed:
                raise ProtocolError("the server does not seal this link; upgrade it")
            return {"proof": _proof(key, CLIENT, said)}
        mine = _new_share()
        said += share + mine.public
        self.session = mine.session(share, key, said, server=False)
        return {"proof": _proof(key, CLIENT, said), "share": mine.public}


class Reception:
    """The server's side of one connection. `peer`, and the `protocol` to speak with it, are known once `take`
    has returned a WELCOME.

    session: of a sealed link, known once its PROOF was right: what answers it, also a refusal, is sealed.
    """

    def __init__(self, identity: Identity, sealed: bool = False) -> None:
        """sealed: this side wants the link to be."""
        self.peer: Identity | None = None
        self.protocol = identity.protocol
        self.session: Session | None = None
        self._identity = identity
        self._sealed = sealed
        self._share: Share | None = None
        self._said = b""
        self._claimed: Identity | None = None
        self._begun = False

    def take(self, frame: Frame) -> tuple[Kind, Header]:
        """What to answer to a HELLO or a PROOF.

        Raises ProtocolError for a peer that is not of this cluster or does not fit.
        """
        if frame.kind is Kind.PROOF:
            return self._check(frame.header)
        if self._begun:
            raise ProtocolError("a second HELLO on one connection")
        self._begun = True
        claimed = Identity.from_header(frame.header)
        sealed = self._sealed or frame.header.get("sealed") is True
        if sealed:
            _require_key(self._identity)
        if not self._identity.key:
            return self._welcome(claimed)
        return Kind.CHALLENGE, self._challenge(claimed, _bytes(frame.header, "nonce"), sealed)

    def _challenge(self, claimed: Identity, theirs: bytes, sealed: bool) -> Header:
        self._claimed = claimed
        nonce = secrets.token_bytes(NONCE_BYTES)
        self._share = _new_share() if sealed else None
        share = b"" if self._share is None else self._share.public
        self._said = theirs + nonce + _packed(claimed) + share
        challenge = {"nonce": nonce, "proof": _proof(self._identity.key, SERVER, self._said)}
        return challenge | {"share": share} if share else challenge

    def _check(self, header: Any) -> tuple[Kind, Header]:
        claimed, self._claimed = self._claimed, None  # a challenge is good for one attempt
        key, said = self._identity.key, self._said
        theirs = _bytes(header, "share") if self._share is not None else b""
        if claimed is None or not hmac.compare_digest(
            _bytes(header, "proof"), _proof(key, CLIENT, said + theirs)
        ):
            raise ProtocolError(STRANGER)
        if self._share is not None:
            self.session = self._share.session(theirs, key, said + theirs, server=True)
        return self._welcome(claimed)

    def _welcome(self, peer: Identity) -> tuple[Kind, Header]:
        self.protocol = self._identity.check(peer)
        self.peer = peer
        return Kind.WELCOME, self._identity.to_header()


def _proof(key: bytes, side: bytes, said: bytes) -> bytes:
    """said: nonces of client and server, the client's packed identity, then no share or those of server and
    client. All but the identity are of fixed length, and msgpack tells where that ends: no two look alike."""
    return hmac.new(key, side + said, hashlib.sha256).digest()


def _packed(identity: Identity) -> bytes:
    packed: bytes = msgpack.packb(sorted(identity.to_header().items()))
    return packed


def _new_share() -> Share:
    from cluster.dispatch.seal import Share  # 7 MB, for links that are sealed

    return Share()


def _require_key(identity: Identity) -> None:
    if not identity.key:
        raise ProtocolError(
            "a link that leaves this machine needs the cluster's key on both sides; start both with `moemesh`"
        )


def _bytes(header: Any, name: str) -> bytes:
    """32 of them: nonces, proofs and shares are equally long."""
    value = header.get(name) if isinstance(header, dict) else None
    if not isinstance(value, bytes) or len(value) != NONCE_BYTES:
        raise ProtocolError(f"{STRANGER}: its greeting has no {name}")
    return value
