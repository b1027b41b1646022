"""The layer loop can be suspended: two micro-batches are in flight, and no reply is awaited too early."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import pytest

from cluster.dispatch.transport import ExpertCall, ExpertRows
from cluster.errors import NodeLost
from cluster.router.forward import Outcome, Receive, Send, drive

NOTHING = np.zeros((0, 0), np.float32)


class Recorder:
    """A transport that writes down what was asked of it; rows carry their key."""

    def __init__(self, fail_at: int = -1) -> None:
        self.log: list[str] = []
        self._fail_at = fail_at

    def send(self, call: ExpertCall) -> None:
        self.log.append(f"send {call.layer}.{call.micro_batch}")

    def wait(self, step: int, layer: int, micro_batch: int) -> ExpertRows:
        self.log.append(f"wait {layer}.{micro_batch}")
        if layer == self._fail_at:
            raise NodeLost("node 1 is gone")
        return ExpertRows(np.array([[layer, micro_batch]], np.float32), np.zeros((1, 1), np.int32))

    def close(self) -> None: ...


def layers(
    log: list[str], micro_batch: int, count: int
) -> Generator[Send | Receive, ExpertRows | None, Outcome]:
    """What `forward` does, less the arithmetic."""
    for layer in range(count):
        log.append(f"attention {layer}.{micro_batch}")
        yield Send(ExpertCall(1, layer, micro_batch, NOTHING, NOTHING, NOTHING))
        log.append(f"shared {layer}.{micro_batch}")
        rows = yield Receive(layer)
        assert rows is not None
        assert rows.rows.tolist() == [[layer, micro_batch]]
    return Outcome(NOTHING, np.zeros(0, np.int32))


def test_one_micro_batch_computes_the_shared_expert_while_rows_are_away() -> None:
    experts = Recorder()
    drive([layers(experts.log, 0, 2)], 1, experts)
    assert experts.log == [
        *("attention 0.0", "send 0.0", "shared 0.0", "wait 0.0"),
        *("attention 1.0", "send 1.0", "shared 1.0", "wait 1.0"),
    ]


def test_two_micro_batches_alternate() -> None:
    experts = Recorder()
    outcomes = drive([layers(experts.log, i, 2) for i in range(2)], 1, experts)
    assert len(outcomes) == 2
    traffic = [entry for entry in experts.log if not entry.startswith("shared")]
    assert traffic == [
        *("attention 0.0", "send 0.0", "attention 0.1", "send 0.1"),
        *("wait 0.0", "attention 1.0", "send 1.0"),
        *("wait 0.1", "attention 1.1", "send 1.1"),
        *("wait 1.0", "wait 1.1"),
    ], "each micro-batch computes attention while the other's rows are at the experts"


def test_an_error_of_the_transport_ends_the_step() -> None:
    experts = Recorder(fail_at=1)
    with pytest.raises(NodeLost):
        drive([layers(experts.log, i, 3) for i in range(2)], 1, experts)
    sent = [entry.split()[1] for entry in experts.log if entry.startswith("send")]
    awaited = [entry.split()[1] for entry in experts.log if entry.startswith("wait")]
    assert sorted(sent) == sorted(awaited), "no call of the failed step stays open"
