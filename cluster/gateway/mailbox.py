"""What a router has sent for one request and the client has not read yet."""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field

import numpy as np

from cluster.errors import MoemeshError, ProtocolError
from cluster.gateway.meter import FAILED, RequestMeter
from cluster.types import Alternatives, FinishReason, RequestId


@dataclass(frozen=True, slots=True)
class End:
    """How a request ended well. values: a score's log-probabilities [prompt_tokens - 1] float32, or an
    embedding [hidden] float32; alternatives: a score's, where it asked for some."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    values: np.ndarray | None = None
    alternatives: tuple[Alternatives, ...] = ()


@dataclass(slots=True)
class Batch:
    """Tokens in the order of generation; `end` is None while more may come.

    alternatives: one a token if the request asked for some, else empty.
    """

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    end: End | None = None

    def part(self, first: int, end: int) -> Batch:
        """Tokens from `first` until before `end`, and the end of all."""
        here = slice(first, end)
        return Batch(self.token_ids[here], self.logprobs[here], self.alternatives[here], self.end)

    def extend(self, later: Batch) -> None:
        self.token_ids += later.token_ids
        self.logprobs += later.logprobs
        self.alternatives += later.alternatives
        self.end = self.end or later.end


class Bell:
    """Wakes the one reader of a request's mailboxes."""

    __slots__ = ("_wake",)

    def __init__(self) -> None:
        self._wake: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Until the next ring. Look into the mailboxes before: a ring that nobody waits for is not kept."""
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def ring(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Mailbox:
    """One sequence's tokens between the router's connection and its stream. Used by the gateway's loop only.

    It holds at most `max_tokens` tokens, so a client that does not read costs no more than its own
    request; one that reads slowly gets several tokens at once. `bell` rings at every change; `started`: its
    router has sent something, or it has ended otherwise. keep: what was read is kept too, for `rewind`.
    known: tokens that its reader has from another gateway, the first to be read; their log-probabilities are
    not known and read 0, their alternatives empty. listed: whether tokens come with alternatives.
    """

    __slots__ = (
        *("_batch", "_error", "_max_tokens", "_meter", "_read"),
        *("_ids", "bell", "ended", "reason", "request_id", "started"),
    )

    def __init__(
        self,
        request_id: RequestId,
        max_tokens: int,
        bell: Bell | None = None,
        meter: RequestMeter | None = None,
        keep: bool = False,
        known: tuple[int, ...] = (),
        listed: bool = False,
    ) -> None:
        self.request_id = request_id
        self.bell = bell or Bell()
        self._ids = array("i", known)
        self.started = False
        self.ended = False
        self.reason = ""
        self._max_tokens = max_tokens
        self._meter = meter
        self._batch = Batch(list(known), [0.0] * len(known), [()] * len(known) if listed else [])
        self._read = Batch() if keep else None
        self._error: MoemeshError | None = None

    @property
    def received(self) -> int:
        """How many tokens have come."""
        return len(self._ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """All that have come, read or not: another router goes on behind them."""
        return tuple(self._ids)

    def token(self, token_id: int, logprob: float, alternatives: Alternatives = ()) -> None:
        if self.ended:
            return
        self.started = True
        if len(self._ids) == self._max_tokens:
            self.fail(ProtocolError(f"a router sent more than the {self._max_tokens} tokens asked for"))
            return
        self._ids.append(token_id)
        if self._meter is not None:
            self._meter.token()
        self._batch.token_ids.append(token_id)
        self._batch.logprobs.append(logprob)
        if alternatives:
            self._batch.alternatives.append(alternatives)
        self.bell.ring()

    def let_in(self) -> None:
        """A router has it from now on."""
        if self._meter is not None:
            self._meter.let_in()

    def finish(self, end: End) -> None:
        if not self.ended:
            self._end(end.reason)
            self._batch.end = end
            self.bell.ring()

    def fail(self, error: MoemeshError) -> None:
        """The reader gets what came before first, then this."""
        if not self.ended:
            self._end(FAILED)
            self._error = error
            self.bell.ring()

    def close(self, reason: FinishReason | None) -> None:
        """Nobody reads it any more. reason: why, if the reader knows better than the router's last event: a
        stop string may be complete with a sequence's last token."""
        if self._meter is not None and not self.ended:
            self._meter.stop(reason or "aborted")
        if self.reason != FAILED:
            self.reason = reason or self.reason or "aborted"
        self.ended = True
        if self._meter is not None:
            self._meter.end(self.reason)

    def _end(self, reason: str) -> None:
        self.started = self.ended = True
        self.reason = reason
        if self._meter is not None:
            self._meter.stop(reason)

    def poll(self) -> Batch | None:
        """Everything since the last call; None if there is neither a token nor the end.

        Raises the error that ended the request. Nothing comes after `end` or an error.
        """
        if not self._batch.token_ids and self._batch.end is None:
            if self._error is not None:
                raise self._error
            return None
        batch, self._batch = self._batch, Batch()
        if self._read is not None:
            self._read.extend(batch)
        return batch

    def rewind(self, bell: Bell, prompt_tokens: int) -> None:
        """Give everything again from the first token, to a reader that waits for `bell`. Needs `keep`."""
        assert self._read is not None, "nothing was kept"
        self._read.extend(self._batch)
        self._batch, self._read = self._read, Batch()
        if self.ended and self._error is None and self._batch.end is None:  # its reader had enough of it
            self._batch.end = End("stop", prompt_tokens, self.received)
        self.bell = bell

    async def take(self) -> Batch:
        """As `poll`, but waits for something to be there."""
        while (batch := self.poll()) is None:
            await self.bell.wait()
        return batch
