"""Measuring the dispatch: the exchange against echo nodes, and plain sockets that move the same bytes.

Nodes are processes of their own on loopback; both ways send the same rows to the same nodes, so that their
ratio tells what frames, planning and matching cost.
"""

from __future__ import annotations

import gc
import os
import secrets
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

import msgpack
import numpy as np

from cluster.balance.placement import PlacementTable, round_robin
from cluster.config import WireSecurity
from cluster.dispatch.exchange import Exchange
from cluster.dispatch.flight import Counters
from cluster.dispatch.handshake import KEY_VARIABLE, Identity
from cluster.dispatch.transport import Array, ExpertCall, WireShape
from cluster.expert.node import ExpertNode
from cluster.fleet.children import START_S, children
from cluster.types import NodeId
from kernels import warm

BUNDLED = WireShape(layers=6, experts=32, top_k=4, hidden=256)
"""Shape of the bundled model."""

WARM_UP = 200


class EchoCompute:
    """Answers at once with rows of a fixed pattern: what is left is the dispatch."""

    def __init__(self, shape: WireShape) -> None:
        self._shape = shape
        self._rows = np.zeros((0, shape.hidden), shape.result_dtype)

    def run(self, layer: int, counts: Array, experts: Array, rows: Array, scales: Array) -> Array:
        pairs = len(experts)
        if pairs > len(self._rows):
            pattern = np.arange(self._shape.hidden, dtype=self._shape.result_dtype)
            self._rows = np.tile(pattern, (2 * pairs, 1))
        return self._rows[:pairs]


@dataclass(frozen=True)
class Measured:
    """times_us: one entry a round trip; header and payload bytes as the counters saw them, per round trip."""

    times_us: Array
    rows: int
    pairs: int
    messages: float = 0.0
    header_bytes_out: float = 0.0
    payload_bytes_out: float = 0.0
    payload_bytes_in: float = 0.0

    def percentile(self, p: float) -> float:
        return float(np.percentile(self.times_us, p))


def measure_exchange(
    rows: int,
    *,
    nodes: int = 3,
    rounds: int = 2000,
    shape: WireShape = BUNDLED,
    seed: int = 0,
    sealed: bool = False,
) -> Measured:
    """Round trips (send and wait) of one layer with `rows` rows over echo nodes. Raises StartFailed.

    sealed: as between machines (cluster/dispatch/seal.py).
    """
    names = [NodeId(f"echo{n}") for n in range(nodes)]
    table = round_robin(shape.layers, shape.experts, names)
    calls = _calls(rows, shape, seed)
    security = WireSecurity.always if sealed else WireSecurity.auto
    with (
        _cluster_key() as (key, file),
        children(_serve_echo, [(shape, name, table, file) for name in names]) as addresses,
    ):
        identity = Identity("router", "bench", 1, key=key, security=security)
        exchange = Exchange(identity, shape, table, dict(zip(names, addresses, strict=True)))
        try:
            exchange.connect(START_S)
            _rounds(exchange, calls, WARM_UP, 0)
            _settle()
            exchange.counters = Counters()
            times = _rounds(exchange, calls, rounds, WARM_UP)
            counters = exchange.counters
        finally:
            exchange.close()
    return Measured(
        times,
        rows,
        rows * shape.top_k,
        counters.messages_out / rounds,
        counters.header_bytes_out / rounds,
        counters.payload_bytes_out / rounds,
        counters.payload_bytes_in / rounds,
    )


def measure_raw(
    rows: int, *, nodes: int = 3, rounds: int = 2000, shape: WireShape = BUNDLED, seed: int = 0
) -> Measured:
    """The same bytes over blocking sockets with a msgpack header and nothing else: the machine's limit."""
    names = [NodeId(f"raw{n}") for n in range(nodes)]
    table = round_robin(shape.layers, shape.experts, names)
    plans = [_raw_plan(call, table, shape) for call in _calls(rows, shape, seed)]
    with children(_serve_raw, [(shape,)] * nodes) as addresses:
        socks = [_connect_raw(address) for address in addresses]
        try:
            buffer = memoryview(bytearray(rows * shape.top_k * shape.result_bytes))
            for number in range(WARM_UP):
                _raw_round(socks, plans[number % len(plans)], buffer)
            times = np.empty(rounds)
            for number in range(rounds):
                begin = time.perf_counter()
                _raw_round(socks, plans[number % len(plans)], buffer)
                times[number] = time.perf_counter() - begin
        finally:
            for sock in socks:
                sock.close()
    return Measured(times * 1e6, rows, rows * shape.top_k)


def _calls(rows: int, shape: WireShape, seed: int, count: int = 64) -> list[ExpertCall]:
    rng = np.random.default_rng(seed)
    calls = []
    for number in range(count):
        ids = np.argsort(rng.random((rows, shape.experts)), axis=1)[:, : shape.top_k].astype(np.int32)
        data = rng.integers(-127, 128, (rows, shape.hidden)).astype(np.int8)
        scales = rng.random(rows).astype(np.float32)
        if shape.float_rows:
            data, scales = data.astype(np.float32), np.empty(0, np.float32)
        calls.append(ExpertCall(0, number % shape.layers, 0, np.ascontiguousarray(ids), data, scales))
    return calls


def _rounds(exchange: Exchange, calls: list[ExpertCall], rounds: int, first: int) -> Array:
    times = np.empty(rounds)
    for number in range(rounds):
        call = calls[number % len(calls)]
        step = first + number
        named = ExpertCall(step, call.layer, 0, call.ids, call.rows, call.scales)
        begin = time.perf_counter()
        exchange.send(named)
        exchange.wait(step, call.layer, 0)
        times[number] = time.perf_counter() - begin
    return times * 1e6


def _settle() -> None:
    """What roles do when they are built (cluster/fleet/control.py)."""
    gc.collect()
    gc.freeze()


@contextmanager
def _cluster_key() -> Iterator[tuple[bytes, str]]:
    """A key, and the file in which the nodes find it."""
    with tempfile.NamedTemporaryFile() as file:
        key = secrets.token_bytes(32)
        file.write(key)
        file.flush()
        yield key, file.name


def _serve_echo(pipe: Pipe, shape: WireShape, name: NodeId, table: PlacementTable, key_file: str) -> None:
    os.environ[KEY_VARIABLE] = key_file
    warm.compile_all()  # as every role does: a kernel compiled at its first call is a node that is silent
    node = ExpertNode(EchoCompute(shape), shape, node_id=name)
    node.hold(table.version, table.experts_of(name))
    _settle()
    pipe.send(node.start())
    with suppress(EOFError):  # the parent closed its end, or is gone
        pipe.recv()
    node.shutdown()


_LENGTHS = struct.Struct("<II")


def _raw_plan(call: ExpertCall, table: PlacementTable, shape: WireShape) -> list[list[bytes]]:
    """Per node the buffers to send; an empty list for a node without rows."""
    owner = table.owners(call.layer)[call.ids]
    plan: list[list[bytes]] = []
    for node in range(len(table.nodes)):
        mine = owner == node
        counts = mine.sum(axis=1)
        rows, pairs = int((counts > 0).sum()), int(counts.sum())
        if not rows:
            plan.append([])
            continue
        experts = call.ids[mine].astype(shape.expert_dtype).tobytes()
        header = msgpack.packb(
            [
                1,
                1,
                0,
                call.layer,
                0,
                0,
                1,
                rows,
                counts[counts > 0].astype(np.uint8).tobytes(),
                experts,
                pairs,
            ]
        )
        payload = bytes(rows * shape.row_bytes)
        plan.append([_LENGTHS.pack(len(header), len(payload)) + header, payload])
    return plan


def _raw_round(socks: list[socket.socket], plan: list[list[bytes]], buffer: memoryview) -> None:
    for sock, message in zip(socks, plan, strict=True):
        if message:
            _send_all(sock, message)
    for sock, message in zip(socks, plan, strict=True):
        if message:
            header, payload = _LENGTHS.unpack(_receive(sock, buffer, _LENGTHS.size))
            msgpack.unpackb(_receive(sock, buffer, header))
            _receive(sock, buffer, payload)


def _send_all(sock: socket.socket, buffers: list[bytes]) -> None:
    size = sum(map(len, buffers))
    sent = sock.sendmsg(buffers)
    if sent < size:
        sock.sendall(b"".join(buffers)[sent:])


def _receive(sock: socket.socket, buffer: memoryview, count: int) -> memoryview:
    got = 0
    while got < count:
        more = sock.recv_into(buffer[got:count])
        if not more:
            raise EOFError
        got += more
    return buffer[:count]


def _connect_raw(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=START_S)
    sock.settimeout(None)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _serve_raw(pipe: Pipe, shape: WireShape) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    pipe.send(f"127.0.0.1:{listener.getsockname()[1]}")
    sock, _ = listener.accept()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    buffer = memoryview(bytearray(64 << 20))
    answer = bytes(64 << 20)
    with listener, sock:
        while True:
            try:
                lengths = _LENGTHS.unpack(_receive(sock, buffer, _LENGTHS.size))
                header: list[Any] = msgpack.unpackb(_receive(sock, buffer, lengths[0]))
                _receive(sock, buffer, lengths[1])
                size = header[10] * shape.result_bytes
                reply = msgpack.packb([*header[:8], 0, 0])
                _send_all(sock, [_LENGTHS.pack(len(reply), size) + reply, answer[:size]])
            except (EOFError, OSError):
                return
