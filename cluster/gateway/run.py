"""One request from admission to its last token: what every service of the gateway shares."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from cluster.gateway.admission import Admitted
from cluster.gateway.admit import sample_requests
from cluster.gateway.caller import caller
from cluster.gateway.mailbox import Batch, Bell, End
from cluster.gateway.pool import RouterPool
from cluster.gateway.served import ServedModel
from cluster.gateway.ticket import Ticket
from cluster.model.text_stream import TextStream
from cluster.types import Alternatives, FinishReason

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """ttft_s: from admission to the first token, 0 without one; duration_s: from admission to the end.

    completion_tokens: all that were generated, up to and with the one that completed a stop string.
    stop: the stop string that ended the text, None where something else did.
    """

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    ttft_s: float
    duration_s: float
    stop: str | None = None


@dataclass(slots=True)
class Delta:
    """What is new of one sample since its last delta. `text` is whole characters; it may lag behind
    `token_ids`, and is held back where it may begin a stop string.

    logprobs: one a token; alternatives: one a token if the request asked for some, else empty.
    outcome: None while more may come of this sample.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    outcome: Outcome | None = None
    alternatives: list[Alternatives] = field(default_factory=list)
    index: int = 0


@dataclass(slots=True)
class _Sample:
    """emitted: tokens received, also those below `resume_from`; first_at: when the first one came."""

    index: int
    stream: TextStream
    emitted: int = 0
    first_at: float = 0.0


class Run:
    """A generation in progress. Use as a context manager: leaving it frees all that the request holds.

        with Run(served, pool, admitted) as run:
            async for delta in run: ...

    It ends when every sample has given its outcome; an error that ends one of them ends them all and is
    raised.
    """

    def __init__(
        self,
        served: ServedModel,
        pool: RouterPool,
        admitted: Admitted,
        charged: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        """charged: as in Ticket."""
        self.admitted = admitted
        self._pool = pool
        self._charged = charged
        self._clock = clock
        self._open = [_Sample(i, served.text_stream(admitted.stop)) for i in range(admitted.samples)]
        self._ticket: Ticket | None = None
        self._bell = Bell()
        self._began = clock()

    def __enter__(self) -> Self:
        """Raises Overloaded, Unavailable, or InvalidRequest if the request id is running already."""
        self._ticket = self._resumed()
        if self._ticket is None:
            self._ticket = self._submitted()
        if self._ticket is not None:
            self._bell = self._ticket.bell
        return self

    def _resumed(self) -> Ticket | None:
        """The request of this name that waits for its client to come back, if there is one."""
        admitted = self.admitted
        if not (admitted.resume_from or admitted.resume_window_s):
            return None
        requests = sample_requests(admitted, caller().id)
        return self._pool.resume(*requests, window_s=admitted.resume_window_s)

    def _submitted(self) -> Ticket | None:
        """None for a request of no tokens, of which no router hears."""
        admitted = self.admitted
        if admitted.sampling.max_tokens == 0:
            return None
        requests = sample_requests(admitted, caller().id)
        if admitted.resume_from:  # its old stream may still seem to go on
            return self._pool.replace(*requests, window_s=admitted.resume_window_s)
        return self._pool.submit(*requests, window_s=admitted.resume_window_s, charged=self._charged)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ticket is None or self._replaced:
            return
        if kind is None:
            self._pool.release(self._ticket)
        else:
            self._pool.leave(self._ticket)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Delta:
        """Waits for news. Raises the error that ended the request."""
        while self._open:
            if self._replaced:
                return self._taken(self._open[0])
            delta = self._news()
            if delta is not None:
                return delta
            await self._bell.wait()
        raise StopAsyncIteration

    def _news(self) -> Delta | None:
        """Of the first sample that has any; the others are looked at first the next time."""
        for place, sample in enumerate(self._open):
            while (batch := self._poll(sample)) is not None:
                delta = self._delta(sample, batch)
                if delta.token_ids or delta.outcome is not None:
                    if delta.outcome is None and len(self._open) > 1:
                        self._open.append(self._open.pop(place))
                    return delta
        return None

    @property
    def _replaced(self) -> bool:
        """Whether another stream has resumed the request, and is its reader now."""
        return self._ticket is not None and self._ticket.bell is not self._bell

    def _taken(self, sample: _Sample) -> Delta:
        end = End("aborted", len(self.admitted.prompt_ids), sample.emitted)
        return Delta(sample.stream.flush(), outcome=self._close(sample, end), index=sample.index)

    def _poll(self, sample: _Sample) -> Batch | None:
        if self._ticket is None:
            return Batch(end=End("length", len(self.admitted.prompt_ids), 0))
        return self._ticket.mailboxes[sample.index].poll()

    def _delta(self, sample: _Sample, batch: Batch) -> Delta:
        if not sample.first_at and sample.emitted + len(batch.token_ids) > len(self.admitted.resumed_ids):
            sample.first_at = self._clock()
        skipped, taken, text = self._read(sample, batch.token_ids)
        stopped, end = sample.stream.stopped is not None, batch.end
        if end is not None and not stopped:
            text += sample.stream.flush()
            stopped = sample.stream.stopped is not None
        if stopped:
            end = End("stop", len(self.admitted.prompt_ids), sample.emitted)
        if skipped or taken < len(batch.token_ids):
            batch = batch.part(skipped, taken)
        return Delta(
            text,
            batch.token_ids,
            batch.logprobs,
            None if end is None else self._close(sample, end),
            batch.alternatives,
            sample.index,
        )

    def _read(self, sample: _Sample, ids: list[int]) -> tuple[int, int, str]:
        """(tokens that the stream which this one resumes has sent, those and the new ones up to the end of a
        stop string, text of the new ones)."""
        stream, skipped, taken, text = sample.stream, 0, 0, ""
        if sample.emitted < self.admitted.resume_from:
            skipped = min(self.admitted.resume_from - sample.emitted, len(ids))
            taken = stream.push(ids[:skipped])[1]
            ids = ids[skipped:]
        if stream.stopped is None:
            text, new = stream.push(ids)
            taken += new
        sample.emitted += taken
        return skipped, taken, text

    def _close(self, sample: _Sample, end: End) -> Outcome:
        """Nothing more is wanted of this sample, whether or not its router knows yet."""
        self._open.remove(sample)
        if self._ticket is not None and not self._replaced:
            self._ticket.drop(sample.index, end.reason)
        return Outcome(
            reason=end.reason,
            prompt_tokens=end.prompt_tokens,
            completion_tokens=end.completion_tokens,
            ttft_s=sample.first_at - self._began if sample.first_at else 0.0,
            duration_s=self._clock() - self._began,
            stop=sample.stream.stopped,
        )
