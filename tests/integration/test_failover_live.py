"""Streams over real processes while nodes are cut off, slowed down, frozen and killed: every token, the same
bits.

How long it takes is `moemesh bench failover`'s to say.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from cluster.balance.placement import PlacementTable
from cluster.cli.bench_failover import reference
from cluster.config import ControllerConfig, EngineConfig
from cluster.experiments.live.cluster import LiveCluster, LiveNode, expert_model, live_cluster
from cluster.experiments.live.failover import as_expected, in_copies
from cluster.experiments.live.faults import Fault
from cluster.experiments.live.pace import row_rate
from cluster.experiments.live.streams import streams_while
from cluster.library.bundled import open_model
from cluster.library.reader import Library
from cluster.types import EngineRequest, RequestId, SamplingParams

RATE = 20_000.0


@pytest.fixture(scope="module")
def library() -> Library:
    return open_model()


@pytest.fixture(scope="module")
def requests() -> list[EngineRequest]:
    return [
        EngineRequest(
            RequestId(str(number)),
            tuple(range(5 + number, 25 + number)),
            SamplingParams(max_tokens=40, temperature=0.8, seed=number, ignore_eos=True),
        )
        for number in range(4)
    ]


@pytest.fixture(scope="module")
def expected(library: Library, requests: list[EngineRequest]) -> list[list[int]]:
    return reference(library, requests)


@contextmanager
def cluster_of_three(library: Library, copies: int) -> Iterator[LiveCluster]:
    model = expert_model(library)
    nodes = [LiveNode(row_rate(RATE, model), relayed=True) for _ in range(3)]
    config = ControllerConfig(min_replicas=copies, replicate_after_s=1.0)
    table = in_copies(library, 3, copies)
    with live_cluster(library, nodes, [EngineConfig()], config=config, table=table) as live:
        yield live


def eventually(live: LiveCluster, what: Callable[[PlacementTable], bool]) -> None:
    """Wait until the table in use is such a one, and everybody uses it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = live.controller.status(detail=True)
        settled = not status["pending"] and status["settled"] and status["active"] == status["version"]
        if settled and what(PlacementTable.from_wire(status["table"])):
            return
        time.sleep(0.05)
    raise AssertionError("the table that was waited for did not come")


def test_one_fault_after_another(library, requests, expected) -> None:
    with cluster_of_three(library, copies=2) as live:
        nodes = [live.processes[f"node-{number}"] for number in range(3)]

        def faults() -> None:
            time.sleep(0.3)
            nodes[0].tell("cut")
            time.sleep(0.8)
            nodes[0].tell("mend")
            time.sleep(1.0)
            os.kill(nodes[1].pid, signal.SIGSTOP)
            time.sleep(0.8)
            os.kill(nodes[1].pid, signal.SIGCONT)
            nodes[2].tell("slow_down")
            time.sleep(0.5)
            Fault.kill.happen_to(nodes[2])
            eventually(live, lambda table: "node-2" not in table.nodes)

        streams, _ = asyncio.run(streams_while(live.router_address(), requests, faults))
        assert not [stream.error for stream in streams if stream.error]
        assert all(as_expected(stream, expected[stream.request]) for stream in streams)
        assert sum(stream.ended for stream in streams) >= len(requests)
        copies = PlacementTable.from_wire(live.controller.status(detail=True)["table"]).replicas
        assert {len(holders) for layer in copies for holders in layer} == {2}


def test_the_only_copies_are_loaded_elsewhere(library, requests, expected) -> None:
    with cluster_of_three(library, copies=1) as live:

        def lose_two() -> None:
            for number, left in ((1, {"node-0", "node-2"}), (2, {"node-0"})):
                time.sleep(0.3)
                Fault.kill.happen_to(live.processes[f"node-{number}"])
                eventually(live, lambda table, left=left: set(table.nodes) == left)

        streams, _ = asyncio.run(streams_while(live.router_address(), requests, lose_two))
        assert not [stream.error for stream in streams if stream.error]
        assert all(as_expected(stream, expected[stream.request]) for stream in streams)
        assert sum(stream.ended for stream in streams) >= len(requests)
