"""Writes to the stream of one RPC, for as long as somebody reads."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from google.protobuf.message import Message

from cluster.errors import SlowReader
from cluster.gateway.status import Context

IDLE = float("inf")


class Writer:
    """Routers never wait for a reader: what one has not read is held in its mailboxes, bounded by its own
    max_tokens. reader_s bounds how long: a write that waits for longer ends the stream. Use as a context
    manager; one write at a time.

    error: why it was given up, None while it goes on.
    """

    def __init__(self, context: Context, reader_s: float) -> None:
        self.error: SlowReader | None = None
        self._context = context
        self._reader_s = reader_s
        self._loop = asyncio.get_running_loop()
        self._writing: asyncio.Task[object] | None = None
        self._since = IDLE

    def __enter__(self) -> Self:
        self._timer = self._loop.call_later(self._reader_s, self._look)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()

    async def open(self) -> None:
        """Before the first write: headers wait for no reader. A first write that is cancelled leaves gRPC in
        doubt about whether they were sent, and then no status can be sent either."""
        await self._context.send_initial_metadata(())

    async def write(self, message: Message) -> None:
        """Raises SlowReader."""
        self._writing, self._since = asyncio.current_task(), self._loop.time()
        try:
            await self._context.write(message)
        except asyncio.CancelledError:
            if self.error is None or (self._writing is not None and self._writing.uncancel()):
                raise  # from elsewhere
            raise self.error from None
        finally:
            self._since = IDLE

    def _look(self) -> None:
        """One timer a stream, not one a write: a token's timer would cost as much as a tenth of its write."""
        now = self._loop.time()
        if now < self._since + self._reader_s:
            self._timer = self._loop.call_at(min(self._since, now) + self._reader_s, self._look)
        elif self._writing is not None:
            self.error = SlowReader.after(self._reader_s)
            self._writing.cancel()
