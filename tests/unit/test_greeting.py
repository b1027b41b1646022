"""Two sides of a greeting, without sockets; with them in tests/integration/test_dispatch_greeting.py."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from cluster.config import WireSecurity
from cluster.dispatch.frames import Frame
from cluster.dispatch.greeting import Greeting, Reception, must_seal
from cluster.dispatch.handshake import SECURITY_VARIABLE, Identity, error_header, wire_security
from cluster.dispatch.kinds import Kind
from cluster.errors import ConfigError, ProtocolError

KEY, OTHER = b"k" * 32, b"o" * 32


def client(key: bytes = KEY, sealed: bool = False, **fields: Any) -> Greeting:
    return Greeting(Identity("router", "r", 3, key=key, **fields), sealed)


def server(key: bytes = KEY, sealed: bool = False) -> Reception:
    return Reception(Identity("node", "n", 7, library="a" * 64, key=key), sealed)


def frame(kind: Kind, header: Any) -> Frame:
    return Frame(kind, header, memoryview(b""), 0)


def meet(greeting: Greeting, reception: Reception) -> list[Kind]:
    """Carry frames between the two; returns the kinds of the server's."""
    kinds = []
    answer = reception.take(frame(Kind.HELLO, greeting.hello()))
    while True:
        kinds.append(answer[0])
        proof = greeting.answer(frame(*answer))
        if proof is None:
            return kinds
        answer = reception.take(frame(Kind.PROOF, proof))


@pytest.mark.parametrize(("key", "kinds"), [(KEY, [Kind.CHALLENGE, Kind.WELCOME]), (b"", [Kind.WELCOME])])
def test_two_of_one_cluster_know_each_other(key: bytes, kinds: list[Kind]) -> None:
    greeting, reception = client(key), server(key)
    assert meet(greeting, reception) == kinds
    assert greeting.server is not None
    assert reception.peer is not None
    assert (greeting.server.id, reception.peer.id) == ("n", "r")


@pytest.mark.parametrize(("mine", "theirs"), [(KEY, OTHER), (b"", KEY), (KEY, b"")])
def test_strangers_learn_nothing(mine: bytes, theirs: bytes) -> None:
    greeting, reception = client(mine), server(theirs)
    with pytest.raises(ProtocolError, match="key"):
        meet(greeting, reception)
    assert greeting.server is None
    if theirs:
        assert reception.peer is None


def test_a_challenge_says_nothing_of_the_server() -> None:
    _, header = server().take(frame(Kind.HELLO, client().hello()))
    assert isinstance(header, dict)
    assert set(header) == {"nonce", "proof"}


def test_a_proof_is_good_for_one_connection() -> None:
    greeting, reception = client(), server()
    _, challenge = reception.take(frame(Kind.HELLO, greeting.hello()))
    proof = greeting.answer(frame(Kind.CHALLENGE, challenge))
    again = server()
    again.take(frame(Kind.HELLO, greeting.hello()))
    with pytest.raises(ProtocolError):
        again.take(frame(Kind.PROOF, proof))
    with pytest.raises(ProtocolError):  # nor for a second attempt after a wrong one
        again.take(frame(Kind.PROOF, proof))


def test_a_server_s_own_proof_cannot_be_sent_back() -> None:
    reception = server()
    _, challenge = reception.take(frame(Kind.HELLO, client().hello()))
    assert isinstance(challenge, dict)
    with pytest.raises(ProtocolError):
        reception.take(frame(Kind.PROOF, {"proof": challenge["proof"]}))


def test_who_the_client_claims_to_be_is_part_of_its_proof() -> None:
    greeting, reception = client(), server()
    hello = greeting.hello()
    assert isinstance(hello, dict)
    _, challenge = reception.take(frame(Kind.HELLO, hello | {"id": "another"}))
    with pytest.raises(ProtocolError, match="key"):
        greeting.answer(frame(Kind.CHALLENGE, challenge))


@pytest.mark.parametrize("header", [None, 7, {}, {"proof": "x" * 32}, {"proof": b"x"}, {"proof": b"x" * 33}])
def test_a_broken_proof_is_refused(header: Any) -> None:
    reception = server()
    reception.take(frame(Kind.HELLO, client().hello()))
    with pytest.raises(ProtocolError):
        reception.take(frame(Kind.PROOF, header))


def test_a_proof_without_a_challenge_is_refused() -> None:
    with pytest.raises(ProtocolError):
        server().take(frame(Kind.PROOF, {"proof": b"x" * 32}))


def test_what_does_not_fit_is_said_to_members_alone() -> None:
    with pytest.raises(ProtocolError, match="library"):
        meet(client(library="b" * 64), server())
    with pytest.raises(ProtocolError, match="key"):
        meet(client(OTHER, library="b" * 64), server())


def test_a_refusal_is_raised_as_it_was_meant() -> None:
    with pytest.raises(ProtocolError, match="no room"):
        client().answer(frame(Kind.REFUSED, error_header(ProtocolError("no room"))))


def test_a_key_is_not_part_of_what_is_shown() -> None:
    identity = Identity("node", "n", key=KEY)
    assert "kkk" not in repr(identity)
    assert KEY not in identity.to_header().values()


@pytest.mark.parametrize(("mine", "theirs"), [(True, False), (False, True), (True, True)])
def test_a_link_is_sealed_if_one_side_wants_it(mine: bool, theirs: bool) -> None:
    greeting, reception = client(sealed=mine), server(sealed=theirs)
    meet(greeting, reception)
    assert greeting.session is not None
    assert reception.session is not None
    assert greeting.session.send == reception.session.receive
    assert greeting.session.receive == reception.session.send


def test_a_link_is_not_sealed_if_no_side_wants_it() -> None:
    greeting, reception = client(), server()
    meet(greeting, reception)
    assert greeting.session is None
    assert reception.session is None


@pytest.mark.parametrize(("mine", "theirs"), [(True, False), (False, True)])
def test_without_a_key_nothing_can_be_sealed(mine: bool, theirs: bool) -> None:
    with pytest.raises(ProtocolError, match="key"):
        meet(client(b"", mine), server(b"", theirs))


def test_who_wants_a_seal_cannot_be_talked_out_of_it() -> None:
    """By somebody between the two, who leaves the wish out of a HELLO, or the share out of a CHALLENGE."""
    greeting, reception = client(sealed=True), server()
    hello = dict(greeting.hello())
    del hello["sealed"]
    _, challenge = reception.take(frame(Kind.HELLO, hello))
    with pytest.raises(ProtocolError, match="does not seal"):
        greeting.answer(frame(Kind.CHALLENGE, challenge))
    greeting, reception = client(), server(sealed=True)
    _, challenge = reception.take(frame(Kind.HELLO, greeting.hello()))
    without = {name: value for name, value in dict(challenge).items() if name != "share"}
    with pytest.raises(ProtocolError, match="key"):
        greeting.answer(frame(Kind.CHALLENGE, without))


@pytest.mark.parametrize("whose", ["server", "client"])
def test_a_share_is_part_of_its_owner_s_proof(whose: str) -> None:
    greeting, reception = client(sealed=True), server()
    _, challenge = reception.take(frame(Kind.HELLO, greeting.hello()))
    if whose == "server":
        with pytest.raises(ProtocolError, match="key"):
            greeting.answer(frame(Kind.CHALLENGE, dict(challenge) | {"share": b"s" * 32}))
        return
    proof = greeting.answer(frame(Kind.CHALLENGE, challenge))
    assert proof is not None
    with pytest.raises(ProtocolError, match="key"):
        reception.take(frame(Kind.PROOF, dict(proof) | {"share": b"s" * 32}))
    assert reception.session is None


def test_a_member_that_does_not_fit_is_told_so_behind_the_seal() -> None:
    greeting, reception = client(sealed=True, library="b" * 64), server()
    with pytest.raises(ProtocolError, match="library"):
        meet(greeting, reception)
    assert reception.peer is None
    assert reception.session is not None


class Link:
    """What is asked of a connected socket."""

    def __init__(self, here: str, there: str, family: int = socket.AF_INET) -> None:
        self.family, self._here, self._there = family, here, there

    def getsockname(self) -> tuple[str, int]:
        return self._here, 1

    def getpeername(self) -> tuple[str, int]:
        return self._there, 2


@pytest.mark.parametrize(
    ("link", "leaves"),
    [
        (Link("127.0.0.1", "127.0.0.1"), False),
        (Link("127.0.0.1", "127.0.0.2"), False),
        (Link("::1", "::1", socket.AF_INET6), False),
        (Link("192.0.2.1", "192.0.2.1"), False),
        (Link("", "", socket.AF_UNIX), False),
        (Link("192.0.2.1", "192.0.2.2"), True),
        (Link("2001:db8::1", "2001:db8::2", socket.AF_INET6), True),
        (Link("fe80::1%eth0", "fe80::2%eth0", socket.AF_INET6), True),
    ],
)
def test_links_that_leave_the_machine_are_sealed(link: Link, leaves: bool) -> None:
    identity = Identity("node", "n", key=KEY, security=WireSecurity.auto)
    assert must_seal(identity, link) is leaves  # type: ignore[arg-type]
    careful = Identity("node", "n", key=KEY, security=WireSecurity.always)
    assert must_seal(careful, link)  # type: ignore[arg-type]


def test_processes_of_a_cluster_find_its_wire_security_in_their_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Identity("node", "n").security is WireSecurity.auto
    try:
        for value in ("always", "off"):
            monkeypatch.setenv(SECURITY_VARIABLE, value)
            wire_security.cache_clear()
            if value == "always":
                assert Identity("node", "n").security is WireSecurity.always
                continue
            with pytest.raises(ConfigError, match="auto or always"):
                Identity("node", "n")
    finally:
        monkeypatch.undo()
        wire_security.cache_clear()
