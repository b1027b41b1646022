"""What a chaos run has shown, for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from cluster.cli.output import print_json, table_console
from cluster.cli.report import git_revision, machine
from cluster.experiments.chaos import history as h
from cluster.experiments.chaos.check import Answer, Violation, check
from cluster.experiments.chaos.resources import Growth, Sample, growth
from cluster.experiments.chaos.run import Plan
from cluster.experiments.chaos.schedule import VERSION
from cluster.experiments.chaos.timeline import by_request, gaps_of, spans_of

MOST_SHOWN = 20
"""Violations in the table; --json has all."""

GIVEN_UP, LEFT, FAILED, UNENDED = "given up", "left by its client", "failed", "without an end"


@dataclass(frozen=True)
class Outcome:
    """version: of what is drawn from the seed. faults: by kind, as many as happened, and the longest pause of
    a stream that may be theirs. requests: by how they ended. calls: how many ended with each error, after
    which their clients went on. growth: of a soak."""

    command: str
    version: int
    seconds: float
    faults: dict[str, tuple[int, float]]
    requests: dict[str, int]
    calls: dict[str, int]
    tokens: int
    longest_gap_s: float
    violations: list[Violation]
    growth: list[Growth]

    @staticmethod
    def of(
        plan: Plan, events: Sequence[h.Event], answers: Sequence[Answer], samples: Sequence[Sample]
    ) -> Outcome:
        """samples: none unless growth is judged."""
        requests = by_request(events)
        gaps = [gap for own in requests.values() for gap in gaps_of(own)]
        failed = [event for event in events if isinstance(event, h.Failed)]
        return Outcome(
            command_of(plan),
            VERSION,
            events[-1].t if events else 0.0,
            _faults(events, gaps),
            dict(Counter(_end(own[-1]) for own in requests.values())),
            dict(Counter(f"{event.code} {event.kind}".strip() for event in failed)),
            sum(len(event.ids) for event in events if isinstance(event, h.Tokens)),
            max((end - begin for begin, end in gaps), default=0.0),
            check(events, answers),
            growth(samples),
        )

    @property
    def flat(self) -> bool:
        return all(one.flat for one in self.growth)

    def as_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        fields["faults"] = {
            kind: {"count": n, "longest_gap_s": gap} for kind, (n, gap) in self.faults.items()
        }
        fields["growth"] = [asdict(one) | {"flat": one.flat} for one in self.growth]
        return {"machine": machine(), "git": git_revision(), **fields}


def command_of(plan: Plan) -> str:
    """Does all of it again."""
    many = f"--faults {plan.count}" if plan.count else f"--minutes {plan.minutes:g}"
    soak = " --soak" if plan.shape.spared else ""
    return f"moemesh chaos --seed {plan.seed} {many} --streams {plan.streams}{soak}"


def _faults(events: Sequence[h.Event], gaps: Sequence[tuple[float, float]]) -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = {}
    for span in spans_of(events):
        near = (end - begin for begin, end in gaps if begin <= span.end and span.begin <= end)
        count, longest = found.get(span.kind.value, (0, 0.0))
        found[span.kind.value] = count + 1, max((longest, *near))
    return found


def _end(last: h.Event) -> str:
    match last:
        case h.Ended():
            return last.reason
        case h.Failed():
            return last.code
        case h.GaveUp():
            return GIVEN_UP
        case h.Left():
            return LEFT
    return UNENDED


def show(outcome: Outcome, as_json: bool) -> None:
    """On stdout."""
    if as_json:
        print_json(outcome.as_dict())
        return
    console = table_console()
    console.print(_faults_table(outcome))
    ends = ", ".join(f"{count} {end}" for end, count in sorted(outcome.requests.items()))
    console.print(f"\n{sum(outcome.requests.values())} requests, {outcome.tokens} tokens: {ends}")
    if outcome.calls:
        console.print("calls that failed: " + ", ".join(f"{n} {error}" for error, n in outcome.calls.items()))
    for one in outcome.growth:
        mark = "flat" if one.flat else "[red]grows[/]"
        console.print(f"{one.process} {one.what}: mean {one.mean:.4g}, rise {one.rise:+.3g}, {mark}")
    count = sum(n for n, _ in outcome.faults.values())
    console.print(
        f"{count} faults in {outcome.seconds:.0f} s, {len(outcome.violations)} violations, "
        f"longest gap {outcome.longest_gap_s:.2f} s",
        style="bold",
    )
    if outcome.violations:
        console.print(_violations_table(outcome.violations[:MOST_SHOWN]))
        console.print(f"again: {outcome.command}", soft_wrap=True)


def _faults_table(outcome: Outcome) -> Table:
    table = Table("fault", "times", "longest gap, s", box=None, header_style="bold")
    for kind, (count, gap) in sorted(outcome.faults.items()):
        table.add_row(kind, str(count), f"{gap:.2f}")
    return table


def _violations_table(violations: Sequence[Violation]) -> Table:
    table = Table("t", "violation", "of", "expected", "came", box=None, header_style="bold red")
    for one in violations:
        table.add_row(f"{one.t:.2f}", one.wrong.value, one.where, one.expected, one.came)
    return table
