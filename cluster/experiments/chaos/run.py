"""A run: a cluster, clients, faults, and then whether everything came back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from cluster.experiments.chaos import history as h
from cluster.experiments.chaos.clients import Caller, Client
from cluster.experiments.chaos.history import History
from cluster.experiments.chaos.injection import Injection
from cluster.experiments.chaos.resources import Sample, look, owed, record
from cluster.experiments.chaos.schedule import Fault, Shape, first, within
from cluster.experiments.chaos.supervised import Supervised, wait_whole
from cluster.experiments.chaos.workload import Question, Turn, questions, turns

START_WITHIN_S = 240.0
REST_WITHIN_S = 60.0
"""For members, tables and copies to be as before the faults, and for what requests held to be returned."""

END_WITHIN_S = 180.0
"""For requests under way, once there are no more faults."""

SAMPLE_S = 10.0
WARM_TURNS = 2
POLL_S = 0.25


@dataclass(frozen=True)
class Plan:
    """seed: of everything. count, minutes: of faults and of the run; the other is 0. streams: clients at
    once."""

    seed: int
    count: int = 0
    minutes: float = 0.0
    streams: int = 6
    shape: Shape = field(default_factory=Shape)

    @property
    def _seeds(self) -> list[np.random.SeedSequence]:
        """Independent of each other: of the faults, of the questions, of who asks what and how."""
        return np.random.SeedSequence(self.seed).spawn(3)

    def faults(self) -> list[Fault]:
        seed = self._seeds[0]
        return (
            first(seed, self.shape, self.count) if self.count else within(seed, self.shape, 60 * self.minutes)
        )

    def questions(self, vocab: int) -> list[Question]:
        return questions(self._seeds[1], vocab)

    def turns(self, asked: list[Question]) -> list[Iterator[Turn]]:
        """Of each client."""
        return [turns(seed, asked) for seed in self._seeds[2].spawn(self.streams)]


class Run:
    """progress: is told what goes on."""

    def __init__(
        self,
        plan: Plan,
        cluster: Supervised,
        caller: Caller,
        asked: list[Question],
        history: History,
        progress: Callable[[str], None],
    ) -> None:
        self._plan, self._cluster, self._caller, self._asked = plan, cluster, caller, asked
        self._history, self._progress = history, progress
        self.samples: list[Sample] = []

    async def run(self) -> None:
        """Raises StartFailed if the cluster does not start."""
        self._progress("starting a cluster")
        await asyncio.to_thread(wait_whole, self._cluster, START_WITHIN_S)
        clients = [
            Client(number, self._caller, list(self._cluster.gateways), self._asked, self._history)
            for number in range(self._plan.streams)
        ]
        drawn = self._plan.turns(self._asked)
        self._progress("undisturbed requests")
        self._history.start()
        await self._serve(clients, [islice(each, WARM_TURNS) for each in drawn], asyncio.Event())
        await asyncio.to_thread(self._rest, first=True)
        await self._disturb(clients, drawn)
        self._progress("waiting for everything to come back")
        await asyncio.to_thread(self._rest, first=False)
        self._history.add(h.Stopped)

    async def _serve(
        self, clients: Sequence[Client], drawn: Sequence[Iterator[Turn]], stop: asyncio.Event
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for client, each in zip(clients, drawn, strict=True):
                group.create_task(client.ask(each, stop))

    async def _disturb(self, clients: Sequence[Client], drawn: Sequence[Iterator[Turn]]) -> None:
        """Faults, and clients until the last one is over."""
        stop = asyncio.Event()
        serving = asyncio.create_task(self._serve(clients, drawn, stop))
        sampling = asyncio.create_task(self._sample())
        try:
            await self._inject(serving)
            stop.set()
            async with asyncio.timeout(END_WITHIN_S):
                await serving
        except TimeoutError:
            self._progress("some requests never end")  # their histories say so, too
        finally:
            sampling.cancel()
            serving.cancel()
            await asyncio.gather(serving, sampling, return_exceptions=True)

    async def _inject(self, serving: asyncio.Task[None]) -> None:
        """Ends early if `serving` does, which is a bug of ours."""
        faults, begin = self._plan.faults(), time.monotonic()

        def tell(fault: Fault) -> None:
            name = f"{fault.kind.value} {', '.join(fault.victims)}"
            self._progress(f"fault {fault.number + 1} of {len(faults)}: {name} for {fault.for_s:.1f} s")

        injection = Injection(self._cluster, self._history, tell, serving.done)
        await asyncio.to_thread(injection.run, faults)
        await asyncio.sleep(max(0.0, begin + 60 * self._plan.minutes - time.monotonic()))
        if serving.done():
            serving.result()

    async def _sample(self) -> None:
        while True:
            for name in list(self._cluster.running):
                sample = look(self._cluster, name, self._history.now)
                if sample is not None:
                    self.samples.append(sample)
            await asyncio.sleep(SAMPLE_S)

    def _rest(self, first: bool) -> None:
        """Once nothing runs and nothing lacks, or after REST_WITHIN_S, write down what everybody holds."""
        deadline = time.monotonic() + REST_WITHIN_S
        while (lacks := self._lacks()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if lacks:
            self._history.add(h.Unhealed, what=lacks)
        record(self._cluster, self._history, first)

    def _lacks(self) -> str:
        held = [f"{what} is {count}" for what, count in owed(self._cluster.members()).items()]
        return "; ".join(filter(None, (self._cluster.lacks(), *held)))
