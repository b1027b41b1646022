"""One request from admission to its last token: what every service of the gateway shares."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from cluster.errors import InvalidRequest
from cluster.gateway.admission import Admitted
from cluster.gateway.mailbox import Batch, End
from cluster.gateway.routers import RouterPool, Ticket
from cluster.gateway.served import ServedModel
from cluster.types import EngineRequest, FinishReason

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """ttft_s: from admission to the first token, 0 without one; duration_s: from admission to the end."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    ttft_s: float
    duration_s: float


@dataclass(slots=True)
class Delta:
    """What is new since the last one. `text` is whole characters; it may lag behind `token_ids`."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    outcome: Outcome | None = None


class Run:
    """A generation in progress. Use as a context manager: leaving it frees all that the request holds.

        with Run(served, pool, admitted) as run:
            while (delta := await run.next()).outcome is None: ...

    `emitted` counts tokens received so far, also those below `resume_from`.
    """

    def __init__(
        self, served: ServedModel, pool: RouterPool, admitted: Admitted, clock: Clock = time.monotonic
    ) -> None:
        self.emitted = 0
        self.admitted = admitted
        self._pool = pool
        self._clock = clock
        self._decoder = served.stream_decoder()
        self._ticket: Ticket | None = None
        self._began = self._first = clock()

    def __enter__(self) -> Self:
        """Raises Overloaded, Unavailable, or InvalidRequest if the request id is running already."""
        admitted = self.admitted
        if self._pool.is_running(admitted.request_id):
            if admitted.resume_from == 0:
                raise InvalidRequest(
                    f"request_id {admitted.request_id!r} is running; abort it first or choose another"
                )
            self._pool.abort(admitted.request_id)
        if admitted.sampling.max_tokens > 0:
            request = EngineRequest(
                admitted.request_id, admitted.prompt_ids, admitted.sampling, tier=admitted.tier
            )
            self._ticket = self._pool.submit(request)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ticket is not None:
            self._pool.release(self._ticket)

    async def next(self) -> Delta:
        """Waits for news. The delta with an outcome is the last. Raises the error that ended the request."""
        if self._ticket is None:
            batch = Batch(end=End("length", len(self.admitted.prompt_ids), 0))
        else:
            batch = await self._ticket.mailbox.take()
        return self._delta(batch)

    def _delta(self, batch: Batch) -> Delta:
        if self.emitted == 0 and batch.token_ids:
            self._first = self._clock()
        # Of this batch, the first `known` tokens were sent by the stream that this one resumes.
        known = min(max(self.admitted.resume_from - self.emitted, 0), len(batch.token_ids))
        for token in batch.token_ids[:known]:
            self._decoder.push(token)
        text = "".join([self._decoder.push(token) for token in batch.token_ids[known:]])
        self.emitted += len(batch.token_ids)
        if batch.end is None:
            return Delta(text, batch.token_ids[known:], batch.logprobs[known:])
        text += self._decoder.flush()
        return Delta(text, batch.token_ids[known:], batch.logprobs[known:], self._outcome(batch.end))

    def _outcome(self, end: End) -> Outcome:
        return Outcome(
            reason=end.reason,
            prompt_tokens=end.prompt_tokens,
            completion_tokens=end.completion_tokens,
            ttft_s=self._first - self._began if self.emitted else 0.0,
            duration_s=self._clock() - self._began,
        )
