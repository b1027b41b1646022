"""The layer loop of one micro-batch, resumable at the two points where it meets the experts.

It is a generator: it yields `Send` when a layer's rows are ready for the experts and is resumed at
once, so that it can compute what does not depend on them (the shared expert); it yields `Receive` when
it can go no further and is resumed with the experts' rows. Between the two another micro-batch may run.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cluster.compute.trunk import KvView, Trunk, Workspace, has_zero
from cluster.dispatch.transport import ExpertCall, ExpertRows, ExpertTransport
from cluster.errors import MoemeshError
from cluster.router.sequence import Batch


class GateProbe(Protocol):
    """Sees every choice of the gates; for traces, quality figures and tests."""

    def gate(self, layer: int, batch: Batch, ids: np.ndarray, weights: np.ndarray) -> None: ...


@dataclass(frozen=True, slots=True)
class Send:
    call: ExpertCall


@dataclass(frozen=True, slots=True)
class Receive:
    layer: int


@dataclass(frozen=True)
class Outcome:
    """hidden: [T, hidden] float32 after the last layer; broken: [T] int32, the first layer at whose
    input a row held NaN or Inf, -1 for a sound row."""

    hidden: np.ndarray
    broken: np.ndarray


Forward = Generator[Send | Receive, ExpertRows | None, Outcome]


def forward(
    trunk: Trunk,
    work: Workspace,
    kv: KvView,
    batch: Batch,
    step: int,
    micro_batch: int,
    probe: GateProbe | None = None,
) -> Forward:
    x = trunk.embed(work, batch.tokens)
    broken = np.full(len(x), -1, np.int32)
    for layer in range(trunk.spec.layers):
        _mark(
            broken, layer, trunk.attention(work, layer, x, kv, batch.positions, batch.slots, batch.sequence)
        )
        if trunk.spec.dense_widths[layer]:
            _mark(broken, layer, trunk.dense(work, layer, x))
            continue
        gated = trunk.gate(work, layer, x)
        _mark(broken, layer, gated.finite)
        if probe is not None:
            probe.gate(layer, batch, gated.ids, gated.weights)
        yield Send(ExpertCall(step, layer, micro_batch, gated.ids, gated.acts.rows, gated.acts.scale))
        shared = trunk.shared(work, layer, gated)
        rows = yield Receive(layer)
        assert rows is not None
        trunk.combine(x, rows.rows, rows.index, gated.weights, shared)
    return Outcome(x, broken)


def _mark(broken: np.ndarray, layer: int, finite: np.ndarray) -> None:
    if has_zero(finite):
        broken[(finite == 0) & (broken < 0)] = layer


def drive(forwards: list[Forward], step: int, experts: ExpertTransport) -> list[Outcome]:
    """Run micro-batches to their end, each computing while the others' rows are at the experts.

    All messages of a micro-batch and layer are sent before any of its replies is awaited.
    Raises what the transport raises; the forwards are then spent.
    """
    outcomes: list[Outcome | None] = [None] * len(forwards)
    waiting: list[tuple[int, int]] = []  # (micro-batch, layer), in the order in which they were sent
    try:
        for number in range(len(forwards)):
            _advance(forwards, number, None, experts, outcomes, waiting)
        while waiting:
            number, layer = waiting.pop(0)
            rows = experts.wait(step, layer, number)
            _advance(forwards, number, rows, experts, outcomes, waiting)
    except Exception:
        _let_go(waiting, step, experts)
        raise
    return [outcome for outcome in outcomes if outcome is not None]


def _let_go(waiting: list[tuple[int, int]], step: int, experts: ExpertTransport) -> None:
    """The step has failed: take in what the other micro-batches still have under way, so that no call of
    this step stays open in the transport."""
    for number, layer in waiting:
        with suppress(MoemeshError):  # the step's first error is the one that is told
            experts.wait(step, layer, number)


def _advance(
    forwards: list[Forward],
    number: int,
    rows: ExpertRows | None,
    experts: ExpertTransport,
    outcomes: list[Outcome | None],
    waiting: list[tuple[int, int]],
) -> None:
    """Resume one micro-batch until it waits for rows again or ends."""
    try:
        request = forwards[number].send(rows)
        while isinstance(request, Send):
            experts.send(request.call)
            request = next(forwards[number])
        waiting.append((number, request.layer))
    except StopIteration as end:
        outcomes[number] = end.value
