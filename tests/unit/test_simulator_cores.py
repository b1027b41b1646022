"""Processes that share a machine's cores: by hand, by conservation, and with a machine for each."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance import choice
from cluster.errors import ConfigError
from cluster.experiments.sim.cores import Cores, Processes, share
from cluster.experiments.sim.inputs import Fault, Fleet, Host, Work
from cluster.experiments.sim.model import Router
from cluster.experiments.sim.run import DETECT_S, simulate
from support.policies import dealt, twice
from support.simulated import DEVICE, MODEL, fleet, work


class Clock:
    """Events in order of time."""

    def __init__(self):
        self.now, self._heap, self._order = 0.0, [], itertools.count()

    def at(self, time, do, *arguments):
        assert time >= self.now
        heapq.heappush(self._heap, (time, next(self._order), do, arguments))

    def run(self):
        while self._heap:
            self.now, _, do, arguments = heapq.heappop(self._heap)
            do(*arguments)


def ends(cores, pieces):
    """When each (arrival, process, work) is done."""
    clock, done = Clock(), {}
    processes = Processes([Cores(cores)], [0] * (1 + max(process for _, process, _ in pieces)), clock)
    for number, (arrival, process, amount) in enumerate(pieces):

        def arrive(number=number, process=process, amount=amount):
            processes.run(process, amount, lambda: done.setdefault(number, clock.now))

        clock.at(arrival, arrive)
    clock.run()
    return [done[number] for number in range(len(pieces))]


def test_a_share_is_a_core_or_an_equal_part():
    assert [share(running, 2) for running in (0, 1, 2, 3, 8)] == [1, 1, 1, 2 / 3, 1 / 4]


@pytest.mark.parametrize(
    ("cores", "pieces", "expected"),
    [
        (2, [(0, 0, 1), (0, 1, 1), (0, 2, 1)], [1.5, 1.5, 1.5]),
        (2, [(0, 0, 1), (0, 1, 1), (0, 2, 2)], [1.5, 1.5, 2.5]),  # the last is alone for its second half
        (1, [(0, 0, 2), (1, 1, 1)], [3, 3]),  # alone for a second, then both at half
        (1, [(0, 0, 1), (0, 0, 1), (0, 1, 1)], [2, 3, 2]),  # a process does one thing after the other
        (4, [(0, 0, 1), (0.5, 1, 1), (0.5, 2, 3)], [1, 1.5, 3.5]),  # cores enough: nobody is in the way
        (1.5, [(0, 0, 3), (0, 1, 3)], [4, 4]),
    ],
)
def test_ends_are_what_arithmetic_says(cores, pieces, expected):
    assert ends(cores, pieces) == pytest.approx(expected)


PIECES = st.lists(
    st.tuples(st.floats(0, 3), st.integers(0, 4), st.floats(0.001, 2)), min_size=1, max_size=12
).map(sorted)


@given(st.integers(1, 4), PIECES)
def test_no_more_is_done_than_there_are_cores_for(cores, pieces):
    found = ends(cores, pieces)
    for until in found:
        done = sum(each for end, (_, _, each) in zip(found, pieces, strict=True) if end <= until)
        assert done <= cores * (until - pieces[0][0]) + 1e-9
    for end, (arrival, _, each) in zip(found, pieces, strict=True):
        assert end >= arrival + each - 1e-9  # nobody is faster than alone
    for process in range(5):  # in order of arrival
        own = [end for end, (_, each, _) in zip(found, pieces, strict=True) if each == process]
        assert own == sorted(own)


@given(PIECES)
def test_with_a_core_for_each_process_everyone_is_alone(pieces):
    found = ends(5, pieces)
    free = [0.0] * 5
    for end, (arrival, process, amount) in zip(found, pieces, strict=True):
        free[process] = max(free[process], arrival) + amount
        assert end == pytest.approx(free[process])


def test_what_is_dropped_leaves_its_share_to_the_others():
    cores = Cores(1)
    for process in range(2):
        cores.begin(0.0, process, 2.0)
    cores.drop(1.0, 0)
    assert cores.left(1.0, 0) == 0
    assert cores.left(1.0, 1) == pytest.approx(1.5)
    assert cores.next_end() == pytest.approx(2.5)
    assert cores.end(2.5) == 1


def apart(count=3):
    """A machine of its own for every process."""
    return (*(Host(1, (device,)) for device in range(count)), Host(1, (), routers=True))


@settings(max_examples=20, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from([1e7, 1.25e9]), st.sampled_from([choice.flow, choice.even_split])
)
def test_cores_for_everybody_give_what_a_machine_for_each_gives(seed, bandwidth, policy):
    plan, router = work(seed=seed), Router(bandwidth=bandwidth)
    devices = tuple(replace(DEVICE, ops=DEVICE.ops * f, bandwidth=DEVICE.bandwidth * f) for f in (1, 2, 0.5))
    alone = Fleet(devices, np.full(3, 1 << 30), router=router)
    for hosts in (apart(), (Host(4, (0, 1, 2), routers=True),)):
        shared = simulate(plan, MODEL, replace(alone, hosts=hosts), twice, policy)
        expected = simulate(plan, MODEL, alone, twice, policy)
        np.testing.assert_allclose(shared.step_s, expected.step_s, rtol=1e-9)
        np.testing.assert_allclose(shared.balance, expected.balance, rtol=1e-9)
        assert shared.rows == expected.rows


def one_layer(cores, router, rows=10, hosted_router=True):
    """One expert and `rows` rows on each of three devices without links and cost of messages; seconds of the
    step, and of one device's computing."""
    device = replace(DEVICE, message_s=0.0, latency_s=0.0, bandwidth=1e18)
    hosts = (Host(cores, (0, 1, 2), routers=hosted_router),)
    shared = Fleet((device,) * 3, np.full(3, 1 << 30), router=router, hosts=hosts)
    plan = Work(np.full((1, 1, 3), rows), np.full(1, rows))
    found = simulate(plan, MODEL, shared, dealt, choice.flow, None).step_s[0]
    return found, device.service_s([rows], MODEL)


FREE = Router(layer_s=0.0, row_s=0.0, step_s=0.0, bandwidth=1e18)


def test_three_devices_on_two_cores_take_half_as_long_again():
    for cores, longer in ((3, 1.0), (2, 1.5), (1, 3.0)):
        found, alone = one_layer(cores, FREE)
        assert found == pytest.approx(longer * alone, rel=1e-6)


def test_a_router_that_sends_and_takes_in_needs_cores_too():
    """A message costs the router a tenth, its reply a fifth of what a device computes for. On one core it all
    takes the sum, whatever the order."""
    _, alone = one_layer(3, FREE)
    router = replace(FREE, send_s=0.1 * alone, take_s=0.2 * alone)
    found, _ = one_layer(1, router)
    assert found == pytest.approx((3 + 3 * 0.1 + 3 * 0.2) * alone, rel=1e-6)
    elsewhere, _ = one_layer(3, router, hosted_router=False)
    # Messages leave at 0.1, 0.2 and 0.3; replies come at 1.1, 1.2, 1.3 and are taken in one after another.
    assert elsewhere == pytest.approx((0.1 + 1 + 3 * 0.2) * alone, rel=1e-6)


@pytest.mark.parametrize("routers", [1, 2])
def test_routers_and_devices_on_one_host_compute_every_row_once(routers):
    plan = work(tokens=9)
    crowded = fleet(routers=routers, hosts=(Host(2, (0, 1, 2), routers=True),))
    first, second = (simulate(plan, MODEL, crowded, twice, choice.least_loaded) for _ in range(2))
    assert first.rows == plan.rows.sum()
    np.testing.assert_array_equal(first.step_s, second.step_s)
    roomy = simulate(plan, MODEL, fleet(routers=routers), twice, choice.least_loaded)
    assert (first.step_s > roomy.step_s).all()


@pytest.mark.parametrize("placement", [dealt, twice])
def test_a_device_that_dies_on_a_shared_host_costs_its_detection_and_no_row(placement):
    plan, hosts = work(steps=12), (Host(2, (0, 1, 2), routers=True),)
    well = simulate(plan, MODEL, fleet(hosts=hosts), placement, choice.flow)
    faults = (Fault(at=well.seconds / 3, device=1), Fault(at=2.0, device=1, kind="return"))
    ill = simulate(plan, MODEL, fleet(hosts=hosts, faults=faults), placement, choice.flow)
    assert ill.rows == plan.rows.sum()
    assert ill.retries >= 1
    assert ill.seconds - well.seconds == pytest.approx(DETECT_S, abs=0.1)  # fewer share the cores meanwhile


def test_a_device_on_a_crowded_host_is_a_slow_one_and_gets_less():
    """Two of three devices share one core: an exact choice by measured speed gives the third more."""
    plan, hosts = work(steps=60, tokens=400), (Host(1, (0, 1)),)
    times = {
        policy: simulate(plan, MODEL, fleet(hosts=hosts), twice, policy).step_s[-20:].mean()
        for policy in (choice.flow, choice.even_split)
    }
    assert times[choice.flow] < 0.9 * times[choice.even_split]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Host(0),
        lambda: fleet(hosts=(Host(1, (3,)),)),
        lambda: fleet(hosts=(Host(1, (0,)), Host(1, (0,)))),
        lambda: fleet(hosts=(Host(1, (), True), Host(1, (), True))),
        lambda: Router(send_s=-1.0),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ConfigError):
        make()
