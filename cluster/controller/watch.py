"""When the controller moves experts by itself. Pure: what members report and `now` in, what to do out.

    window ──► enough tokens ──► a placement is judged, and made if it pays ──► its load is the reference
       ▲                                                                            │
       └── the window begins anew ◄── load or speeds have changed more than noise explains

The same drift, payback and migration as in the simulator (cluster/experiments/sim/control.py); beside them a
least gain and a pause after every decision, so that what noise moves there it does not move back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from cluster.balance.load import LoadStats, drift, merge
from cluster.balance.rebalance import step_seconds
from cluster.config import ControllerConfig, Rebalance
from cluster.controller.members import Role
from cluster.controller.rebalance import Proposal
from cluster.controller.state import ControllerState, settled
from cluster.types import NodeId

SPEED_CHANGE = 1.25
"""A node whose speed, beside the others', is so many times what it was is another node."""

LEAST_MESSAGES = 64.0
"""From a node, before its speed is believed."""


@dataclass(frozen=True, eq=False)
class Watch:
    """What the controller remembers between two looks.

    bases: by router, its incarnation and statistics where the window began; a router that is not there
    counts from its start. reference: the load that was judged last; None before the first.
    quiet_until: on the controller's clock. reason: why a placement is due, "" while none is.
    said: the last decision, in words.
    """

    bases: Mapping[str, tuple[int, LoadStats]] = field(default_factory=dict)
    reference: LoadStats | None = None
    quiet_until: float = 0.0
    reason: str = "first load"
    said: str = ""


def look(
    watch: Watch, state: ControllerState, config: ControllerConfig, now: float
) -> tuple[Watch, LoadStats | None]:
    """What is known after a look; and the load to place experts for, if it is time to."""
    if config.rebalance is Rebalance.manual or state.table is None:
        return watch, None
    if state.pending or not settled(state, now):  # the pause begins when all has moved
        return replace(watch, quiet_until=now + config.cool_down_s), None
    if now < watch.quiet_until:
        return watch, None
    window = load_since(watch, state)
    if window is None:
        return watch, None
    if not watch.reason:
        watch = _with_reason(watch, state, window)
    elif window.sample >= config.settle_tokens:
        return watch, window
    return watch, None


def judge(
    watch: Watch, load: LoadStats, proposal: Proposal, config: ControllerConfig, now: float
) -> tuple[Watch, bool]:
    """Whether the proposal for `load` is to be carried out; whatever the answer, `load` is the reference."""
    decision, problem = proposal.decision, proposal.problem
    assert problem.current is not None, "propose() knows it"
    share = decision.gain / max(step_seconds(problem, problem.current), 1e-12)
    gain = f"{1e3 * decision.gain:.2f} ms a step ({share:.0%})"
    moved = decision.migration.bytes
    if not proposal.tables:
        begin, verdict = False, "the experts are where they should be"
    elif not decision.worth:
        begin, verdict = False, f"moving {moved} bytes for {gain} does not pay"
    elif share < config.min_gain:
        begin, verdict = False, f"a gain of {gain} is below {config.min_gain:.0%}"
    else:
        stages = "1 stage" if len(proposal.tables) == 1 else f"{len(proposal.tables)} stages"
        begin, verdict = True, f"moving {moved} bytes in {stages} for {gain}"
    after = replace(
        watch,
        reference=load,
        quiet_until=now + config.cool_down_s,
        reason="",
        said=f"{watch.reason}: {verdict}",
    )
    return after, begin


def failed(watch: Watch, why: str, config: ControllerConfig, now: float) -> Watch:
    """No placement could be made; it is tried again after the pause."""
    return replace(watch, quiet_until=now + config.cool_down_s, said=f"{watch.reason}: {why}")


def load_since(watch: Watch, state: ControllerState) -> LoadStats | None:
    """What all routers together saw since the window began; None before the first step."""
    shape, parts = (state.shape.layers, state.shape.experts), []
    for router in state.of(Role.ROUTER):
        load = router.load
        if load is None or load.rows.shape != shape:
            continue
        incarnation, base = watch.bases.get(router.id, (router.incarnation, None))
        if base is not None and incarnation == router.incarnation and base.count <= load.count:
            load = load.since(base)
        if load.steps > 0:
            parts.append(load)
    return merge(parts) if parts else None


def _with_reason(watch: Watch, state: ControllerState, window: LoadStats) -> Watch:
    """With a reason and a new window, if anything has changed since the reference."""
    assert watch.reference is not None, "the first reason is there from the start"
    changed = len(drift(window, watch.reference).layers)
    slower = speed_changes(window, watch.reference)
    reasons = [f"the load of {changed} layers has changed"] if changed else []
    reasons += [f"{', '.join(slower)} computes at another speed"] if slower else []
    if not reasons:
        return watch
    bases = {
        router.id: (router.incarnation, router.load)
        for router in state.of(Role.ROUTER)
        if router.load is not None
    }
    return replace(watch, bases=bases, reason=" and ".join(reasons))


def speed_changes(window: LoadStats, reference: LoadStats) -> list[NodeId]:
    """Nodes whose speed beside the others' is no longer what it was."""
    names = [
        name
        for name, node in window.nodes.items()
        if name in reference.nodes
        and min(node.messages, reference.nodes[name].messages) >= LEAST_MESSAGES
        and node.speed > 0
        and reference.nodes[name].speed > 0
    ]
    ratio = np.array([window.nodes[name].speed / reference.nodes[name].speed for name in names])
    if len(names) < 2:
        return []
    beside = np.abs(np.log(ratio / np.median(ratio)))
    return [name for name, far in zip(names, beside, strict=True) if far > np.log(SPEED_CHANGE)]
