"""The simulator against slow twins and closed forms: dispatch, caches, routers, failures, moves,
calibration.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance import choice
from cluster.balance.choice import Batch, Copies
from cluster.errors import ConfigError, MoemeshError
from cluster.experiments.sim.control import Control
from cluster.experiments.sim.dispatch import Dispatcher, Nodes, chooser
from cluster.experiments.sim.fit import Measurement, fit, nonnegative
from cluster.experiments.sim.inputs import Fault, Work
from cluster.experiments.sim.model import Model, Router
from cluster.experiments.sim.outcome import balancedness
from cluster.experiments.sim.profiles import PROFILES, profile
from cluster.experiments.sim.run import DETECT_S, simulate
from support.policies import by_load, dealt, twice
from support.simulated import DEVICE, MODEL, fleet, work


def naive_serve(sent, tokens, rows, devices, nodes, router):
    """rows: [experts, devices]. One dispatch as the docstring tells it."""
    leaves, first, last, total = sent, np.inf, sent, 0
    for d, device in enumerate(devices):
        n = int(rows[:, d].sum())
        if not n:
            continue
        request = tokens * (1 - (1 - 1 / tokens) ** n) * MODEL.request_bytes
        leaves += request / router.bandwidth
        arrives = leaves + device.latency_s + request / device.bandwidth
        compute = sum(
            max(MODEL.expert_bytes / device.read, int(k) * MODEL.ops_per_row / device.ops)
            for k in rows[:, d]
            if k
        )
        ends = max(arrives, nodes[d]) + device.message_s + compute
        nodes[d] = ends
        reply = n * MODEL.reply_bytes
        total += reply
        first = min(first, ends + device.latency_s)
        last = max(last, ends + device.latency_s + reply / device.bandwidth)
    return max(last, first + total / router.bandwidth) if total else last


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_a_dispatch_is_what_its_docstring_says(seed):
    rng = np.random.default_rng(seed)
    devices = [replace(DEVICE, ops=DEVICE.ops * f, bandwidth=DEVICE.bandwidth * f) for f in (1, 2, 0.5, 3)]
    router = Router(bandwidth=float(rng.choice([1e7, 1e12])))
    nodes = Nodes.of(devices, 2 * 5, np.full(4, -1))
    dispatcher = Dispatcher(nodes, MODEL, router, np.full(5, MODEL.expert_bytes))
    free, sent = np.zeros(4), 0.0
    for layer in (0, 1, 0):
        hosts = rng.random((5, 4)) < 0.5
        hosts[~hosts.any(axis=1), 0] = True
        rows = np.where(hosts, rng.integers(0, 40, (5, 4)), 0)
        copies = Copies.of(hosts)
        planned = dispatcher.plan(layer, copies, rows[hosts])
        done, _ = dispatcher.carry(sent, 7, planned)
        assert done == pytest.approx(naive_serve(sent, 7, rows, devices, free, router))
        np.testing.assert_allclose(nodes.free, free)
        np.testing.assert_array_equal(planned.rows, rows.sum(axis=0))
        sent += 1e-3


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 8))
def test_the_cache_is_least_recently_used(seed, slots):
    rng = np.random.default_rng(seed)
    size = MODEL.expert_bytes
    nodes = Nodes.of([DEVICE], 2 * 4, np.array([slots * size]))
    dispatcher = Dispatcher(nodes, MODEL, Router(), np.full(4, size))
    copies, kept = Copies.of(np.ones((4, 1), bool)), OrderedDict()
    for _ in range(30):
        layer, expert = int(rng.integers(2)), int(rng.integers(4))
        planned = dispatcher.plan(layer, copies, np.eye(4, dtype=np.int64)[expert])
        hit = (layer, expert) in kept
        kept[layer, expert] = None
        kept.move_to_end((layer, expert))
        if len(kept) > slots:
            kept.popitem(last=False)
        assert (planned.hits, planned.misses) == (int(hit), int(not hit))
        assert nodes.used[0] <= slots * size


@settings(deadline=None)  # kernels are loaded at the first call
@given(st.integers(0, 2**32))
def test_compiled_policies_choose_as_the_plain_ones(seed):
    rng = np.random.default_rng(seed)
    hosts = rng.random((6, 4)) < 0.5
    hosts[~hosts.any(axis=1), 0] = True
    rows, speed, backlog = rng.integers(0, 20, 6), rng.uniform(1, 3, 4), rng.uniform(0, 2, 4)
    copies = Copies.of(hosts)
    for policy in (choice.least_loaded, choice.flow, choice.even_split, choice.power_of_two):
        fast = chooser(policy)(rows, copies, speed, backlog, 0)
        slow = chooser(lambda batch, plain=policy: plain(batch))(rows, copies, speed, backlog, 0)
        np.testing.assert_array_equal(fast, slow)
        np.testing.assert_array_equal(policy(Batch(rows, hosts, speed, backlog))[hosts], fast)


def test_one_expert_on_one_device_takes_what_arithmetic_says():
    router = Router(layer_s=1e-3, row_s=1e-4, step_s=5e-3, bandwidth=1e12)
    outcome = simulate(
        Work(np.full((2, 1, 1), 10), np.full(2, 10)), MODEL, fleet(1, router=router), dealt, choice.flow
    )
    tokens = 10 * (1 - 0.9**10)
    expected = (
        5e-3 + 1e-3 + 10 * 1e-4 + 2 * 1e-4 + 1e-4  # head, trunk, the link both ways, the message
        + (tokens * MODEL.request_bytes * (1e-8 + 1e-12) + 10 * MODEL.reply_bytes * 1e-8)
        + 10 * MODEL.ops_per_row / 1e9
    )  # fmt: skip
    assert outcome.step_s == pytest.approx([expected] * 2, rel=1e-6)
    assert outcome.balance.tolist() == [1, 1]


@pytest.mark.parametrize("policy", [choice.least_loaded, choice.flow])
@pytest.mark.parametrize("routers", [1, 3])
def test_every_row_is_computed_once_and_the_same_run_is_the_same(policy, routers):
    plan = work(tokens=9)
    first, second = (simulate(plan, MODEL, fleet(routers=routers), twice, policy) for _ in range(2))
    assert first.rows == plan.rows.sum()
    np.testing.assert_array_equal(first.step_s, second.step_s)
    assert first.seconds == second.seconds
    assert ((first.balance > 0) & (first.balance <= 1)).all()


@pytest.mark.parametrize("placement", [dealt, twice])
@pytest.mark.parametrize("routers", [1, 2])
def test_a_device_that_dies_costs_its_detection_and_no_row(placement, routers):
    plan = work(steps=12)
    well = simulate(plan, MODEL, fleet(routers=routers), placement, choice.flow)
    faults = (Fault(at=well.seconds / 3, device=1),)
    ill = simulate(plan, MODEL, fleet(routers=routers, faults=faults), placement, choice.flow)
    assert ill.rows == plan.rows.sum()
    assert ill.retries >= 1
    assert DETECT_S <= ill.seconds - well.seconds < DETECT_S + 0.5
    assert (ill.moved.sum() > 0) == (placement is dealt)  # nobody else has what was only there


def test_a_device_that_returns_gets_experts_again():
    plan = work(steps=200)
    faults = (Fault(at=0.05, device=0), Fault(at=1.2, device=0, kind="return"))
    outcome = simulate(plan, MODEL, fleet(faults=faults), twice, choice.flow)
    assert outcome.rows == plan.rows.sum()
    alone = simulate(plan, MODEL, fleet(faults=faults[:1]), twice, choice.flow)
    assert outcome.moved.sum() > alone.moved.sum()


def test_the_whole_fleet_dead_is_an_error_and_no_hang():
    with pytest.raises(MoemeshError):
        simulate(work(), MODEL, fleet(1, faults=(Fault(at=0.001, device=0),)), dealt, choice.flow)


def test_a_slow_device_is_measured_and_gets_less():
    plan, slow = work(steps=60, tokens=400), (Fault(at=0.0, device=0, kind="slow", factor=4.0),)
    times = {
        policy: simulate(plan, MODEL, fleet(faults=slow), twice, policy).step_s[-20:].mean()
        for policy in (choice.flow, choice.even_split)
    }
    assert times[choice.flow] < 0.75 * times[choice.even_split]


def switched(steps=120):
    """The heavy expert is another one in the second half."""
    rows = np.full((steps, 2, 6), 40)
    rows[: steps // 2, :, 1] = 200
    rows[steps // 2 :, :, 4] = 200
    return Work(rows, np.full(steps, 200))


def test_drift_is_found_and_answered_after_the_new_load_is_known():
    control = Control(drift=True, settle=10, half_life=8, history=20)
    still = simulate(switched(), MODEL, fleet(), by_load, choice.flow, Control(history=20))
    moving = simulate(switched(), MODEL, fleet(), by_load, choice.flow, control)
    (alarm,) = moving.alarms
    assert 60 < alarm <= 72
    assert still.moved.sum() == 0 < moving.moved.sum()
    assert moving.balance[100:].mean() > still.balance[100:].mean() + 0.05


def test_moves_that_do_not_pay_are_not_made():
    control = Control(drift=True, settle=10, half_life=8, history=20, horizon=1e-6)
    outcome = simulate(switched(), MODEL, fleet(), by_load, choice.flow, control)
    assert outcome.alarms
    assert not outcome.moved.any()


def test_balancedness_is_the_fluid_bound_over_the_makespan():
    rows, speed = np.array([[4.0, 2.0, 0.0], [0, 0, 0]]), np.array([2.0, 1.0, 1.0])
    assert balancedness(rows, speed) == pytest.approx((6 / 4) / 2)
    assert balancedness(rows[1:], speed) == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fault(at=-1, device=0),
        lambda: Fault(at=0, device=0, kind="explode"),
        lambda: Fault(at=0, device=0, factor=0),
        lambda: fleet(1, faults=(Fault(0, 3),)),
        lambda: fleet(routers=0),
        lambda: replace(DEVICE, read=0),
        lambda: Model(hidden=0),
        lambda: Router(bandwidth=0),
        lambda: Control(half_life=0),
        lambda: profile("abacus"),
        lambda: simulate(Work(np.zeros((1, 1, 1), int), np.ones(1)), MODEL, fleet(), dealt, choice.flow),
    ],
)
def test_nonsense_is_refused(make):
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("name", PROFILES)
def test_a_fit_finds_the_device_that_was_measured(name):
    """Measurements of a known device, 3 % noise: each rate within 10 %, and other messages predicted."""
    rng, model, truth = np.random.default_rng(1), Model(2048, 1024), profile(name)
    rows = [
        tuple(int(n) for n in rng.integers(1, most, count))
        for most in (2, 8, 60, 400)
        for count in (1, 3, 9) * 4
    ]
    measured = []
    for each in rows:
        size = sum(each) * (model.request_bytes + model.reply_bytes)
        noise = rng.normal(1, 0.03, 2)
        link = 2 * truth.latency_s + size / truth.bandwidth
        measured.append(
            Measurement(each, truth.service_s(list(each), model) * noise[0], size, link * noise[1])
        )
    start = replace(profile("n100"), message_s=1e-5)
    found = fit(measured, model, start)
    assert found.service_error < 0.05
    assert found.link_error < 0.05
    for rate in ("read", "ops", "bandwidth"):
        assert getattr(found.device, rate) == pytest.approx(getattr(truth, rate), rel=0.1), rate
    other = [3, 70, 5, 200]
    assert found.device.service_s(other, model) == pytest.approx(truth.service_s(other, model), rel=0.05)


def test_a_fit_needs_measurements():
    with pytest.raises(ConfigError, match="at least 3"):
        fit([], MODEL, DEVICE)
    with pytest.raises(ConfigError, match="above 0"):
        fit([Measurement((1,), 0.0, 1, 1.0)] * 3, MODEL, DEVICE)


@given(st.integers(0, 2**32))
def test_least_squares_without_negative_parts(seed):
    rng = np.random.default_rng(seed)
    matrix, wanted = rng.uniform(0, 1, (8, 3)), rng.uniform(-1, 1, 8)
    found = nonnegative(matrix, wanted)
    gradient = matrix.T @ (matrix @ found - wanted)
    assert (found >= 0).all()
    assert (gradient > -1e-9).all()  # Karush–Kuhn–Tucker
    assert abs(gradient @ found) < 1e-9
