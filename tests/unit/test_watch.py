"""The controller rebalances by itself: when load or speeds change, if it pays, and not to and fro."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cluster.balance.load import LoadStats, NodeLoad, StepLoad, fold
from cluster.config import ControllerConfig, Rebalance
from cluster.controller import rebalance, syncing
from cluster.controller.members import NO_TABLE, Member, Role
from cluster.controller.state import ControllerState, Shape
from cluster.controller.watch import Watch, failed, judge, look
from cluster.types import NodeId

SHAPE = Shape(nodes=3, layers=2, experts=8, sparse=(0, 1), expert_bytes=100)
NODES = tuple(NodeId(f"node-{i}") for i in range(3))
AUTO = ControllerConfig(rebalance=Rebalance.auto)
TOKENS, STEPS = 32, 20
"""Of a step, and steps of a second."""

SKEWED = np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.05, 0.05, 0.05])


class Cluster:
    """Routers that see loads of a distribution, nodes that do what a table says at once, and a clock."""

    def __init__(self, seed: int, config: ControllerConfig = AUTO, routers: int = 1) -> None:
        self.rng, self.config, self.now = np.random.default_rng(seed), config, 0.0
        self.watch, self.begun = Watch(), []
        self.speed = dict.fromkeys(NODES, 5000.0)
        self.loads = {f"router-{i}": LoadStats.empty(2, 8, 256.0) for i in range(routers)}
        self.state = ControllerState(epoch=1, shape=SHAPE)
        for _ in range(2):
            self.sync()

    def sync(self) -> None:
        table = NO_TABLE if self.state.table is None else (1, self.state.table.version)
        common = {"incarnation": 1, "address": "", "ready": True, "error": None, "last_seen": self.now}
        for node in NODES:
            one = Member(Role.NODE, node, table=table, stats={"memory_bytes": 700}, **common)
            self.state = syncing.sync(self.state, one)
        for name, load in self.loads.items():
            wire = LoadStats.from_wire(load.to_wire())
            self.state = syncing.sync(self.state, Member(Role.ROUTER, name, table=table, load=wire, **common))

    def step(self, chances: np.ndarray, noise: float) -> StepLoad:
        rows = np.stack([self.rng.multinomial(2 * TOKENS, chances) for _ in range(2)])
        nodes = {}
        for node in NODES:
            seconds = 40 / self.speed[node] * self.rng.lognormal(0, noise)
            nodes[node] = NodeLoad(2, 40, 8, seconds)
        return StepLoad(rows, TOKENS, nodes)

    def serve(self, seconds: int, chances: np.ndarray = SKEWED, noise: float = 0.1) -> None:
        for _ in range(seconds):
            for name in self.loads:
                for _ in range(STEPS):
                    self.loads[name] = fold(self.loads[name], self.step(chances, noise))
            self.now += 1.0
            self.sync()
            self.watch, due = look(self.watch, self.state, self.config, self.now)
            if due is not None:
                proposal = rebalance.propose(self.state, self.config, due)
                self.watch, begin = judge(self.watch, due, proposal, self.config, self.now)
                if begin:
                    self.begun.append(self.now)
                    self.state = dataclasses.replace(self.state, table=proposal.tables[-1])


def test_by_hand_nothing_moves_by_itself() -> None:
    cluster = Cluster(0, ControllerConfig())
    cluster.serve(60)
    assert not cluster.begun
    assert cluster.watch.said == ""


@pytest.mark.parametrize(("seed", "routers"), [(0, 1), (1, 2)])
def test_a_steady_load_is_placed_once(seed: int, routers: int) -> None:
    cluster = Cluster(seed, routers=routers)
    cluster.serve(100)
    assert len(cluster.begun) <= 1
    assert "first load" in cluster.watch.said


@pytest.mark.parametrize("seed", [1, 3])
def test_a_load_that_switches_is_placed_once_more(seed: int) -> None:
    cluster = Cluster(seed)
    cluster.serve(60)
    assert len(cluster.begun) == 1
    cluster.serve(60, SKEWED[::-1])
    assert len(cluster.begun) == 2
    assert cluster.watch.said.startswith("the load of 2 layers has changed: moving ")
    assert cluster.begun[1] <= 60 + AUTO.cool_down_s


def test_a_load_that_goes_to_and_fro_does_not_take_the_experts_along() -> None:
    cluster = Cluster(1)
    for _ in range(10):
        cluster.serve(5)
        cluster.serve(5, SKEWED[::-1])
    assert len(cluster.begun) <= 100 / AUTO.cool_down_s
    pauses = np.diff(cluster.begun)
    assert (pauses >= AUTO.cool_down_s).all()


def test_a_node_that_slows_down_gets_less() -> None:
    cluster = Cluster(2)
    cluster.serve(60)
    before = len(cluster.begun)
    cluster.speed[NODES[0]] = 1000.0
    cluster.serve(60)
    assert len(cluster.begun) == before + 1
    assert "node-0 computes at another speed" in cluster.watch.said
    cluster.serve(60)
    assert len(cluster.begun) == before + 1


def test_little_gain_and_what_does_not_pay_are_left_alone() -> None:
    picky = Cluster(3, dataclasses.replace(AUTO, min_gain=0.99))
    picky.serve(60)
    assert not picky.begun
    assert "is below 99%" in picky.watch.said
    poor = Cluster(3, dataclasses.replace(AUTO, horizon=0.0))
    poor.serve(60)
    assert not poor.begun
    assert "does not pay" in poor.watch.said


def test_moves_stay_within_the_bytes_that_they_may_take() -> None:
    cluster = Cluster(4, dataclasses.replace(AUTO, move_bytes=300, min_gain=0.0))
    cluster.serve(40)
    assert "moving 300 bytes" in cluster.watch.said or "moving 200 bytes" in cluster.watch.said


def test_it_waits_for_moves_under_way_and_after_a_failure() -> None:
    cluster = Cluster(5)
    cluster.serve(2)
    table = cluster.state.table
    moving = dataclasses.replace(cluster.state, pending=(table,))
    watch, due = look(Watch(), moving, AUTO, 100.0)
    assert due is None
    assert watch.quiet_until == 100.0 + AUTO.cool_down_s
    watch = failed(Watch(), "no memory", AUTO, 50.0)
    assert watch.said == "first load: no memory"
    assert look(watch, cluster.state, AUTO, 51.0)[1] is None
    assert look(watch, cluster.state, AUTO, 50.0 + AUTO.cool_down_s)[1] is not None


def test_a_router_that_restarts_counts_from_its_start() -> None:
    cluster = Cluster(6)
    cluster.serve(10)
    assert cluster.watch.reference is not None
    old = cluster.loads["router-0"]
    watch = dataclasses.replace(cluster.watch, bases={"router-0": (0, old)}, reason="why")
    _, due = look(watch, cluster.state, AUTO, 1000.0)
    assert due is not None
    assert due.count == pytest.approx(old.count)
