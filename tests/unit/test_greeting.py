"""Two sides of a greeting, without sockets; with them in tests/integration/test_dispatch_greeting.py."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.dispatch.frames import Frame
from cluster.dispatch.greeting import Greeting, Reception
from cluster.dispatch.handshake import Identity, error_header
from cluster.dispatch.kinds import Kind
from cluster.errors import ProtocolError

KEY, OTHER = b"k" * 32, b"o" * 32


def client(key: bytes = KEY, **fields: Any) -> Greeting:
    return Greeting(Identity("router", "r", 3, key=key, **fields))


def server(key: bytes = KEY) -> Reception:
    return Reception(Identity("node", "n", 7, library="a" * 64, key=key))


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
