"""Cases of the kernels that move a dispatch (kernels/express.py), over a socket pair."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from kernels import express, wire
from kernels.selfcheck.cases import Arrays, case
from kernels.selfcheck.draws import Draws, F

_REQUEST, _RESULT = 7, 8
"""Any two leads: what a kernel sends is read by its counterpart."""

_NUMBERS = (300, 9, 70_000, 2, 0, 1, 4, 3, 7, 0)
_WIDTH = 128


@contextmanager
def _sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.settimeout(5)
        yield ours, theirs


def _post(draws: Draws, ours: socket.socket) -> tuple[np.ndarray, ...]:
    """(waiting, sent, tally) of one node's request of three rows, written to `ours`."""
    fds, tag = np.array([ours.fileno()], np.int32), np.array([300, 0, 70_000, 2, 0, 1, 4], np.int64)
    starts = np.array([0, 3], np.int64), np.array([0, 7], np.int64)
    counts, chosen = np.array([1, 2, 4], np.uint8), draws.integers(0, 32, 7, np.int32)
    row_bytes = _WIDTH + 4
    payload = draws.integers(0, 256, 3 * row_bytes, np.uint8)
    head, peers = np.zeros(wire.HEAD_BYTES, np.uint8), np.array([9], np.int64)
    outcome = np.zeros(1, np.uint8), np.zeros(1, np.int64), np.zeros(7, np.int64)
    express.post_requests(
        *(fds, _REQUEST, tag, peers, *starts, counts, chosen, 1, payload, row_bytes, head, *outcome)
    )
    return outcome


def _answer(draws: Draws, theirs: socket.socket) -> int:
    head, data = np.zeros(wire.HEAD_BYTES, np.uint8), draws.integers(0, 256, 7 * 64, np.uint8)
    numbers = np.array(_NUMBERS, np.int64)
    return int(express.post_result(theirs.fileno(), _RESULT, numbers, 6, 1, 40, data, head))


@case
def post_requests(draws: Draws) -> Arrays:
    with _sockets() as (ours, theirs):
        yield from _post(draws, ours)
        yield np.frombuffer(theirs.recv(4096), np.uint8)


@case
def take_request(draws: Draws) -> Arrays:
    with _sockets() as (ours, theirs):
        _post(draws, ours)
        out = (np.zeros(10, np.int64), np.zeros(4, np.uint8), np.zeros(16, np.int32))
        rows, scales = np.zeros((4, _WIDTH), np.int8), np.zeros(4, F)
        held, staging = np.ones((3, 32), np.uint8), np.zeros(4096, np.uint8)
        fd, now = theirs.fileno(), np.zeros((0, 2), np.int32)
        taken = express.take_request(fd, now, staging, _REQUEST, 9, held, 1, *out, rows, scales)
        yield from (np.array([taken]), *out, rows, scales.view(np.int32))


@case
def post_result(draws: Draws) -> Arrays:
    with _sockets() as (ours, theirs):
        yield np.array([_answer(draws, ours)])
        yield np.frombuffer(theirs.recv(4096), np.uint8)


@case
def gather_results(draws: Draws) -> Arrays:
    waiting, results, loads = np.ones(1, np.uint8), np.zeros(7 * 64, np.uint8), np.zeros((1, 2), np.int64)
    tally, starts = np.zeros(7, np.int64), np.array([0, 7], np.int64)
    scratch = np.zeros(4096, np.uint8), np.zeros((1, 2), np.int32)
    with _sockets() as (ours, theirs):
        _answer(draws, theirs)
        fds, peers = np.array([ours.fileno()], np.int32), np.array([9], np.int64)
        tag = np.array(_NUMBERS[:7], np.int64)
        call = (fds, _RESULT, tag, peers, starts, 64, results, 5000, waiting)
        outcome = express.gather_results(*call, *scratch, loads, tally)
    yield from (np.array([outcome]), results, waiting, loads, tally)
