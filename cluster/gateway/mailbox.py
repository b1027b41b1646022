"""What a router has sent for one request and the client has not read yet."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from cluster.errors import MoemeshError, ProtocolError
from cluster.types import FinishReason, RequestId


@dataclass(frozen=True, slots=True)
class End:
    """How a request ended well. `logprobs` only for a score: [prompt_tokens - 1] float32."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    logprobs: np.ndarray | None = None


@dataclass(slots=True)
class Batch:
    """Tokens in the order of generation; `end` is None while more may come."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end: End | None = None


class Mailbox:
    """One request's tokens between the router's connection and its stream. Used by the gateway's loop only.

    It holds at most `max_tokens` tokens, so a client that does not read costs no more than its own
    request; one that reads slowly gets several tokens at once.
    """

    __slots__ = ("_batch", "_error", "_max_tokens", "_wake", "ended", "received", "request_id", "started")

    def __init__(self, request_id: RequestId, max_tokens: int) -> None:
        self.request_id = request_id
        self.received = 0
        self.started = False
        self.ended = False
        self._max_tokens = max_tokens
        self._batch = Batch()
        self._error: MoemeshError | None = None
        self._wake: asyncio.Future[None] | None = None

    def token(self, token_id: int, logprob: float) -> None:
        if self.ended:
            return
        if self.received == self._max_tokens:
            self.fail(ProtocolError(f"a router sent more than the {self._max_tokens} tokens asked for"))
            return
        self.received += 1
        self._batch.token_ids.append(token_id)
        self._batch.logprobs.append(logprob)
        self._notify()

    def finish(self, end: End) -> None:
        if not self.ended:
            self.ended = True
            self._batch.end = end
            self._notify()

    def fail(self, error: MoemeshError) -> None:
        """The reader gets what came before first, then this."""
        if not self.ended:
            self.ended = True
            self._error = error
            self._notify()

    async def take(self) -> Batch:
        """Everything since the last call; waits for at least one token or the end.

        Raises the error that ended the request. Nothing comes after `end` or an error.
        """
        while not self._batch.token_ids and self._batch.end is None:
            if self._error is not None:
                raise self._error
            await self._news()
        batch, self._batch = self._batch, Batch()
        return batch

    async def _news(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
