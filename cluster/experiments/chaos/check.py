"""Whether a history is as it must be. Pure: events in, violations out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cluster.experiments.chaos import history as h
from cluster.experiments.chaos.promises import BACKPRESSURE, PROMISES, UNBROKEN, Promise
from cluster.experiments.chaos.schedule import Kind
from cluster.experiments.chaos.timeline import Near, by_request, gaps_of, spans_of
from cluster.experiments.chaos.workload import Manner

LOOK_AROUND = 8
"""Places within which a token that does not fit is looked for, to say what is wrong with it."""

FDS_SLACK, THREADS_SLACK = 12, 3
"""What a process may have more of than those of its role had before any fault: connections that peers made
again before the old ones were closed by the other side, and one thread that is about to end."""

DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"


class Wrong(StrEnum):
    lost_token = "a token was lost"
    repeated_token = "a token was repeated"
    wrong_bits = "other bits than undisturbed"
    wrong_end = "it ended otherwise than undisturbed"
    no_end = "it never ended"
    wrong_error = "an error that nothing explains"
    wrong_count = "the error does not tell how many tokens were sent"
    long_gap = "a stream paused for too long"
    not_returned = "something was not given back"
    not_healed = "something did not come back"


@dataclass(frozen=True)
class Violation:
    """where: the request or process. t: seconds after the start."""

    wrong: Wrong
    where: str
    t: float
    expected: str
    came: str


@dataclass(frozen=True)
class Answer:
    """Of one process, undisturbed. bits: of the log-probabilities, as float32."""

    ids: tuple[int, ...]
    bits: tuple[int, ...]
    reason: str

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return list(zip(self.ids, self.bits, strict=True))


def check(
    events: Sequence[h.Event], answers: Sequence[Answer], promises: Mapping[Kind, Promise] = PROMISES
) -> list[Violation]:
    """answers: of the questions, by their numbers. promises: of each kind of fault."""
    near = Near(spans_of(events), promises)
    found: list[Violation] = []
    for request, own in by_request(events).items():
        found += _tokens(request, own, answers)
        found += _ends(request, own, answers)
        found += _errors(request, own, near)
        found += _gaps(request, own, near)
    found += _held([event for event in events if isinstance(event, h.Held)])
    found += [
        Violation(Wrong.not_healed, "cluster", event.t, "as before the faults", event.what)
        for event in events
        if isinstance(event, h.Unhealed)
    ]
    return sorted(found, key=lambda one: one.t)


def _tokens(request: str, own: Sequence[h.Event], answers: Sequence[Answer]) -> Iterator[Violation]:
    """The first place at which the answer is not what it must be, if there is one."""
    asked = own[0]
    assert isinstance(asked, h.Asked), "a request begins with a call"
    wanted = answers[asked.question].pairs
    came: list[tuple[int, int]] = []
    for event in own:
        if isinstance(event, h.Tokens):
            came += zip(event.ids, event.bits, strict=True)
            if came != wanted[: len(came)]:
                yield departure(request, event.t, came, wanted)
                return


def departure(
    request: str, t: float, came: Sequence[tuple[int, int]], wanted: Sequence[tuple[int, int]]
) -> Violation:
    """What is wrong with an answer that is not a beginning of `wanted`."""
    pairs = zip(came, wanted, strict=False)
    place = next((at for at, (one, other) in enumerate(pairs) if one != other), len(wanted))
    rest = came[place:]
    expected = f"token {place}: {wanted[place]}" if place < len(wanted) else f"{len(wanted)} tokens"
    wrong = Wrong.wrong_bits
    for away in range(1, LOOK_AROUND + 1):
        if rest == wanted[place + away : place + away + len(rest)]:
            wrong = Wrong.lost_token
            break
        if place >= away and rest == wanted[place - away : place - away + len(rest)]:
            wrong = Wrong.repeated_token
            break
    return Violation(wrong, request, t, expected, f"{rest[0]}")


def _ends(request: str, own: Sequence[h.Event], answers: Sequence[Answer]) -> Iterator[Violation]:
    asked, last = own[0], own[-1]
    assert isinstance(asked, h.Asked), "a request begins with a call"
    if isinstance(last, h.GaveUp):
        yield Violation(Wrong.no_end, request, last.t, "an end", "errors until its client gave up")
    elif isinstance(last, h.Ended):
        yield from _end(request, last, asked, own, answers[asked.question])
    elif isinstance(last, h.Failed):
        if not may_be_last(last.code, Manner(asked.manner)):
            yield Violation(Wrong.no_end, request, last.t, "another call", f"{last.code}: {last.message}")
    elif not (isinstance(last, h.Left) and not last.back):
        yield Violation(Wrong.no_end, request, last.t, "an end", f"nothing after {last.name!r}")


def may_be_last(code: str, manner: Manner) -> bool:
    """Whether a client that means `manner` calls no more after an error of this code."""
    return code == DEADLINE_EXCEEDED and manner is Manner.deadline


def _end(
    request: str, last: h.Ended, asked: h.Asked, own: Sequence[h.Event], answer: Answer
) -> Iterator[Violation]:
    came = sum(len(event.ids) for event in own if isinstance(event, h.Tokens))
    if last.reason == "aborted" and asked.manner == Manner.abort:
        return
    if last.reason != answer.reason:
        yield Violation(Wrong.wrong_end, request, last.t, answer.reason, last.reason)
    if came < len(answer.ids):
        yield Violation(Wrong.lost_token, request, last.t, f"{len(answer.ids)} tokens", f"{came}")
    if last.completion != len(answer.ids):
        told = f"{len(answer.ids)} tokens in the end's count"
        yield Violation(Wrong.wrong_end, request, last.t, told, f"{last.completion}")


def _errors(request: str, own: Sequence[h.Event], near: Near) -> Iterator[Violation]:
    begin, count = own[0].t, 0
    manner = Manner(own[0].manner) if isinstance(own[0], h.Asked) else Manner.whole
    for event in own:
        if isinstance(event, h.Asked):
            begin, count = event.t, 0
        elif isinstance(event, h.Tokens):
            count += len(event.ids)
        elif isinstance(event, h.Failed) and not _legitimate(event, manner, count):
            yield from _error(request, event, count, begin, near)


def _legitimate(event: h.Failed, manner: Manner, count: int) -> bool:
    """Whether it needs no fault to be explained."""
    return may_be_last(event.code, manner) or (event.code == BACKPRESSURE and not count)


def _error(request: str, event: h.Failed, count: int, begin: float, near: Near) -> Iterator[Violation]:
    """Of a call since `begin` that has brought `count` tokens."""
    came = f"{event.code} {event.kind}: {event.message}"
    promised = [each for each in near.promised(begin, event.t) if event.code in each.errors]
    if not promised:
        kinds = ", ".join(kind.value for kind in near.kinds(begin, event.t)) or "no fault"
        yield Violation(Wrong.wrong_error, request, event.t, f"none with {kinds}", came)
    elif event.emitted is None and all(each.told for each in promised):
        yield Violation(Wrong.wrong_count, request, event.t, f"{count} tokens", came)
    elif event.emitted is not None and event.emitted != count:
        yield Violation(Wrong.wrong_count, request, event.t, f"{count} tokens", f"{event.emitted} in {came}")


def _gaps(request: str, own: Sequence[h.Event], near: Near) -> Iterator[Violation]:
    for begin, end in gaps_of(own):
        most = max((each.gap_s for each in near.promised(begin, end)), default=UNBROKEN.gap_s)
        if end - begin > most:
            yield Violation(Wrong.long_gap, request, end, f"at most {most:g} s", f"{end - begin:.1f} s")


def _held(held: Sequence[h.Held]) -> Iterator[Violation]:
    first: Mapping[str, list[h.Held]] = defaultdict(list)
    for event in held:
        if event.first:
            first[event.role].append(event)
    for event in held:
        for name, count in event.owed.items():
            if count:
                yield Violation(Wrong.not_returned, event.process, event.t, f"{name} 0", f"{count}")
        if event.first or not first[event.role]:
            continue
        fds = max(one.fds for one in first[event.role]) + FDS_SLACK
        threads = max(one.threads for one in first[event.role]) + THREADS_SLACK
        if event.fds > fds:
            yield Violation(Wrong.not_returned, event.process, event.t, f"≤ {fds} open files", f"{event.fds}")
        if event.threads > threads:
            yield Violation(
                Wrong.not_returned, event.process, event.t, f"≤ {threads} threads", f"{event.threads}"
            )
