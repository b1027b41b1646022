"""Ports that answer for the time of a survey, over real sockets: whom, how fast, and when no more."""

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Unauthenticated
from cluster.fleet import ports
from cluster.fleet.links import greeting, listening, measuring
from cluster.fleet.links.listening import OURS, TAKEN, Listening, rate
from support.clusters import wait_until

HOST = "127.0.0.1"
SECRET, OTHER = b"s" * 32, b"t" * 32


@pytest.fixture
def port():
    with Listening(SECRET, 60.0) as found:
        (number,) = found.start(HOST, [0])
        yield number


def test_round_trips_and_bandwidth_are_measured(port):
    times = measuring.round_trips(HOST, port, SECRET)
    assert 1 <= len(times) <= measuring.ROUND_TRIPS
    assert all(time > 0 for time in times)
    assert measuring.bandwidth(HOST, port, SECRET) > 0


def test_who_does_not_know_the_secret_gets_nothing_but_the_first_bytes(port):
    with pytest.raises((Unauthenticated, ConnectionError)):
        measuring.round_trips(HOST, port, OTHER)
    with socket.create_connection((HOST, port), 10) as sock:
        greeting.receive(sock, greeting.NONCE_BYTES)
        sock.sendall(bytes(greeting.PROOF_BYTES) + greeting.SINK)
        assert sock.recv(1) == b""


def test_a_listener_that_does_not_know_the_secret_is_none():
    with socket.create_server((HOST, 0)) as server:

        def pose():
            sock, _ = server.accept()
            with sock:
                sock.sendall(bytes(greeting.NONCE_BYTES))
                greeting.receive(sock, greeting.PROOF_BYTES + 1)
                sock.sendall(bytes(greeting.PROOF_BYTES))

        thread = threading.Thread(target=pose)
        thread.start()
        with pytest.raises(Unauthenticated, match="something else answers there"):
            measuring.bandwidth(HOST, server.getsockname()[1], SECRET)
        thread.join()


def test_a_proof_counts_for_what_it_was_made_for_alone():
    one, other = socket.socketpair()
    with one, other:
        one.sendall(bytes(greeting.PROOF_BYTES) + b"x")
        with pytest.raises(Unauthenticated):
            greeting.answer(other, SECRET)


def test_what_is_at_a_port_is_said():
    with socket.create_server((HOST, 0)) as server, Listening(SECRET, 60.0) as found:
        taken = server.getsockname()[1]
        states = found.start(HOST, [taken, 0])
        assert states.pop(taken) == TAKEN
        assert list(states.values()) == [OURS]
    with Listening(SECRET, 60.0) as found:
        assert found.start("192.0.2.1", [0]) == {0: "Cannot assign requested address"}


def test_ports_are_free_when_it_ends_also_with_a_connection_open():
    with Listening(SECRET, 60.0) as found:
        (number,) = found.start(HOST, [0])
        sock = measuring._connected(HOST, number, SECRET, greeting.ECHO)
    with sock:
        assert ports.wait_free([f"{HOST}:{number}"], 10.0) == []
        assert sock.recv(1) == b""


def test_it_ends_by_itself():
    with Listening(SECRET, 0.2) as found:
        (number,) = found.start(HOST, [0])
        assert ports.wait_free([f"{HOST}:{number}"], 10.0) == []


def test_a_connection_may_send_so_many_bytes_and_no_more(port, monkeypatch):
    monkeypatch.setattr(listening, "MOST_BYTES", 1 << 20)
    with (
        measuring._connected(HOST, port, SECRET, greeting.SINK) as sock,
        pytest.raises((ConnectionResetError, BrokenPipeError)),
    ):
        sock.sendall(bytes(1 << 28))


def test_what_a_connection_meets_is_told_apart(port):
    free = ports.free_port(HOST)
    assert measuring.reach(HOST, [port, free]) == {port: measuring.OPEN, free: measuring.REFUSED}


def test_a_full_backlog_is_silence(monkeypatch):
    """A listener that accepts nothing drops what its queue cannot hold, as a firewall does."""
    monkeypatch.setattr(measuring, "CONNECT_S", 0.3)
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen(0)
        number = server.getsockname()[1]
        with socket.create_connection((HOST, number)):
            assert measuring.reach(HOST, [number]) == {number: measuring.SILENT}


def test_connections_leave_no_thread(port):
    before = threading.active_count()
    measuring.reach(HOST, [port])
    measuring.round_trips(HOST, port, SECRET)
    wait_until(lambda: threading.active_count() <= before, "threads end", 10.0)


@given(st.floats(1e3, 1e9), st.integers(2, 50))
def test_an_even_flow_has_its_rate(bytes_per_s, reads):
    came = [(number * 0.01, int(number * 0.01 * bytes_per_s)) for number in range(reads)]
    assert rate(came) == pytest.approx(bytes_per_s, rel=0.2)


def test_a_slow_begin_and_a_long_pause_do_not_count():
    slow_begin = [(0.0, 1), (0.25, 2), (0.5, 1_000_002)]
    assert rate(slow_begin) == 4e6
    pause = [(0.0, 0), (0.1, 500_000), (0.25, 500_000), (0.5, 500_001)]
    assert rate(pause) == pytest.approx(1e6, rel=0.01)
    assert rate([]) == rate([(0.0, 100)]) == rate([(0.0, 1), (0.0, 2)]) == 0.0
