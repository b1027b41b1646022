"""What a host does in a survey: orders come as lines of JSON on stdin, answers go out as lines.

{"do": "time"}                                             seconds since 1970
{"do": "listen", "address", "ports", "secret", "seconds"}  {"up", "ports": {port: state}, "more": port}
{"do": "reach", "address", "ports"}                        {port: state}
{"do": "measure", "address", "port", "secret"}             {"median_s", "p99_s", "round_trips", "bytes_per_s"}

It ends with its stdin, which ends with ssh, and after `MOST_S` in any case. Addresses may be names here.
"""

from __future__ import annotations

import json
import os
import select
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import psutil

from cluster.errors import HostFailed, MoemeshError
from cluster.fleet.folder import Folder
from cluster.fleet.lines import LineProgress
from cluster.fleet.links import measuring
from cluster.fleet.links.listening import IDLE, RUNNING, Listening
from cluster.fleet.ports import resolve

MOST_S = 900.0
"""Of a survey; with 3 s a round that is a fleet of 300 hosts."""

READ_BYTES = 1 << 16


class Agent:
    """Carries out orders. Use as a context manager: what listens ends with it."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._stack = ExitStack()

    def answer(self, order: dict[str, Any]) -> Any:
        """Raises HostFailed, ConfigError."""
        does = {"time": self._time, "listen": self._listen, "reach": self._reach, "measure": self._measure}
        return does[order["do"]](order)

    def _time(self, order: dict[str, Any]) -> float:
        return time.time()

    def _listen(self, order: dict[str, Any]) -> dict[str, Any]:
        record = self._folder.read()
        up = record is not None and record.alive()
        address, secret = resolve(order["address"]), bytes.fromhex(order["secret"])
        states = _taken(address, order["ports"]) if up else {}
        listening = self._stack.enter_context(Listening(secret, min(float(order["seconds"]), MOST_S)))
        wanted = [port for port in order["ports"] if port not in states]
        found = listening.start(address, [*wanted, 0])
        more = next(port for port in found if port not in order["ports"])
        return {"up": up, "ports": states | found, "more": more}

    def _reach(self, order: dict[str, Any]) -> dict[int, str]:
        return measuring.reach(resolve(order["address"]), order["ports"])

    def _measure(self, order: dict[str, Any]) -> dict[str, Any]:
        where = (resolve(order["address"]), int(order["port"]), bytes.fromhex(order["secret"]))
        try:
            times = measuring.round_trips(*where)
            bytes_per_s = measuring.bandwidth(*where)
        except (OSError, MoemeshError) as error:
            raise HostFailed(str(error)) from None
        return {
            "median_s": statistics.median(times),
            "p99_s": float(np.quantile(times, 0.99, method="inverted_cdf")),
            "round_trips": len(times),
            "bytes_per_s": bytes_per_s,
        }

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _taken(address: str, ports: list[int]) -> dict[int, str]:
    """Of a host where the fleet runs: nothing is listened to there that Ray might want to take."""
    listening = {
        one.laddr.port
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.laddr and one.laddr.ip in (address, "0.0.0.0", "::")
    }
    return {port: RUNNING if port in listening else IDLE for port in ports}


def attend(agent: Agent, out: LineProgress, stdin: int = 0) -> None:
    """Answer what comes in until it ends, or `MOST_S` are over."""
    for line in _lines(stdin, time.monotonic() + MOST_S):
        try:
            out.answer(agent.answer(json.loads(line)))
        except MoemeshError as error:
            out.error(error)


def _lines(file: int, deadline: float) -> Iterator[bytes]:
    buffer = b""
    while select.select([file], [], [], max(deadline - time.monotonic(), 0.0))[0]:
        data = os.read(file, READ_BYTES)
        if not data:
            return
        *lines, buffer = (buffer + data).split(b"\n")
        yield from lines
