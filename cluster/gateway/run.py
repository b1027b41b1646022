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
            for place, sample in enumerate(self._open):
                batch = self._poll(sample)
                if batch is not None:
                    self._open.append(self._open.pop(place))  # the others are looked at first next time
                    delta = self._delta(sample, batch)
                    if delta.token_ids or delta.outcome is not None:
                        return delta
                    break
            else:
                await self._news()
        raise StopAsyncIteration

    @property
    def _replaced(self) -> bool:
        """Whether another stream has resumed the request, and is its reader now."""
        return self._ticket is not None and self._ticket.bell is not self._bell

    def _taken(self, sample: _Sample) -> Delta:
        end = End("aborted", len(self.admitted.prompt_ids), sample.emitted)
        return Delta(sample.stream.flush(), outcome=self._close(sample, end), index=sample.index)

    async def _news(self) -> None:
        await self._bell.wait()

    def _poll(self, sample: _Sample) -> Batch | None:
        if self._ticket is None:
            return Batch(end=End("length", len(self.admitted.prompt_ids), 0))
        return self._ticket.mailboxes[sample.index].poll()

    def _delta(self, sample: _Sample, batch: Batch) -> Delta:
        ids, stream = batch.token_ids, sample.stream
        if sample.emitted == 0 and ids:
            sample.first_at = self._clock()
        # Of this batch, the first `known` tokens were sent by the stream that this one resumes.
        known = min(max(self.admitted.resume_from - sample.emitted, 0), len(ids))
        taken = stream.push(ids[:known])[1] if known else 0
        text = ""
        if stream.stopped is None:
            text, new = stream.push(ids[known:])
            taken += new
        sample.emitted += taken
        end = batch.end
        if end is not None and stream.stopped is None:
            text += stream.flush()
        if stream.stopped is not None:
            end = End("stop", len(self.admitted.prompt_ids), sample.emitted)
        outcome = None if end is None else self._close(sample, end)
        part = slice(known, taken)
        return Delta(
            text, ids[part], batch.logprobs[part], outcome, batch.alternatives[part], index=sample.index
        )

    def _close(self, sample: _Sample, end: End) -> Outcome:
        """Nothing more is wanted of this sample, whether or not its router knows yet."""
        self._open.remove(sample)
        if self._ticket is not None and not self._replaced:
            self._ticket.drop(sample.index, end.reason)
        return Outcome(
            reason=end.reason,
            prompt_tokens=end.prompt_tokens,
            completion_tokens=end.completion_tokens,
            ttft_s=sample.first_at - self._began if sample.emitted else 0.0,
            duration_s=self._clock() - self._began,
            stop=sample.stream.stopped,
        )
