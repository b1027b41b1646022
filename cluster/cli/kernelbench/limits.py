"""The machine's own limits: bytes a second out of memory, byte multiply-adds a second between registers."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

import numpy as np

from cluster.cli.kernelbench.calm import Probe
from cluster.cli.kernelbench.shapes import U8
from cluster.cli.report import Result, result
from cluster.compute.threads import Workers
from cluster.errors import MoemeshError
from kernels import jit, limits

DOTS_TIMED = 10**10
"""Multiply-adds of a thread in one timing: about 40 ms with AVX-512, 10 ms with AMX, 1 s without either."""

THREADS = (1, 2)

PARTS = 8
"""Of a buffer, read in turn by probes: of 2 GiB each is larger than most last-level caches."""

TERA, GIGA = 1e12, 1e9


def seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Reader:
    """Reads one buffer with a number of threads, over as many streams as is fastest here."""

    def __init__(self, workers: Workers, data: U8, runs: int) -> None:
        """Measures all numbers of streams `runs` times, in turn. data: [bytes] uint8, at least 64 KiB."""
        self._workers, self._data = workers, data
        self._sink = np.zeros(16, np.int32)
        self._next = 0
        step = max(limits.STREAMS) * workers.threads
        self._pieces = len(data) // limits.PIECE // step * step
        self.rates: dict[int, list[float]] = {streams: [] for streams in limits.STREAMS}
        for _ in range(runs):
            for streams, rates in self.rates.items():
                rates.append(self._rate(streams))
        self.streams = max(self.rates, key=lambda streams: statistics.median(self.rates[streams]))

    def rate(self) -> float:
        """Bytes a second, measured now."""
        return self._rate(self.streams)

    def part_rate(self) -> float:
        """The same over the next of PARTS parts of the buffer: as telling, in a fraction of the time."""
        step = max(limits.STREAMS) * self._workers.threads
        pieces = max(step, self._pieces // PARTS // step * step)
        first = self._next if self._next + pieces <= self._pieces else 0
        self._next = first + pieces
        threads = self._workers.threads
        bounds = [first + pieces * part // threads for part in range(threads + 1)]
        run = lambda: self._workers.run_shares(  # noqa: E731
            limits.read_bytes, bounds, self._data, self.streams, self._sink
        )
        return pieces * limits.PIECE / seconds(run)

    def _rate(self, streams: int) -> float:
        run = lambda: self._workers.run(  # noqa: E731
            limits.read_bytes, self._pieces, self._data, streams, self._sink
        )
        return self._pieces * limits.PIECE / seconds(run)

    def results(self) -> list[Result]:
        name = f"kernels.limits.read_bandwidth.threads{self._workers.threads}"
        giga = {streams: [rate / GIGA for rate in rates] for streams, rates in self.rates.items()}
        best = [result(name, giga[self.streams], "GB/s")]
        return best + [result(f"{name}.streams{n}", rates, "GB/s") for n, rates in giga.items()]


class Registers:
    """The integer rate of this process's instruction set with a number of threads."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self.rate()

    def rate(self) -> float:
        """Operations a second, two for each byte multiply-add, measured now."""
        values = limits.rate_values()
        turns = DOTS_TIMED // limits.RATE_DOTS * self._workers.threads
        run = lambda: self._workers.run(limits.RATE, turns, values)  # noqa: E731
        return 2 * limits.RATE_DOTS * turns / seconds(run)


def measure_registers(runs: int) -> dict[int, list[float]]:
    """Threads: operations a second, of this process's instruction set."""
    rates: dict[int, list[float]] = {}
    for threads in THREADS:
        workers = Workers(threads)
        registers = Registers(workers)
        rates[threads] = [registers.rate() for _ in range(runs)]
        workers.close()
    return rates


def register_results(runs: int, say: Callable[[str], None]) -> list[Result]:
    """Every instruction set that this machine runs, each in a process of its own."""
    found = []
    for isa in jit.supported_isas():
        say(f"integer rate between registers, {isa}")
        for threads, rates in _rates_of(isa, runs).items():
            tera = [rate / TERA for rate in rates]
            found.append(result(f"kernels.limits.dot_rate.{isa}.threads{threads}", tera, "Tops/s"))
    return found


def _rates_of(isa: str, runs: int) -> dict[int, list[float]]:
    command = [sys.executable, "-m", "cluster.cli.kernelbench.limits", str(runs)]
    environment = os.environ | {jit.ISA_VARIABLE: isa}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise MoemeshError(f"measuring {isa} ended with {run.returncode}: {run.stderr[-500:]}")
    return {int(threads): rates for threads, rates in json.loads(run.stdout).items()}


@dataclass(frozen=True)
class Machine:
    """Both limits with one number of threads, for one buffer.

    seen: every probe with this number of threads, of the whole run; a buffer's bandwidth is its own.
    """

    workers: Workers
    reader: Reader
    registers: Registers
    seen: list[Probe]

    def probe(self, memory: bool) -> Probe:
        """The limits, measured now; of memory only if asked for."""
        bandwidth = self.reader.part_rate() if memory else inf
        found = Probe(self.registers.rate(), bandwidth)
        self.seen.append(found)
        return found


if __name__ == "__main__":
    json.dump(measure_registers(int(sys.argv[1])), sys.stdout)
