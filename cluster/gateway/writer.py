"""Writes to the stream of one RPC, for as long as somebody reads."""

from __future__ import annotations

import asyncio

from google.protobuf.message import Message

from cluster.errors import SlowReader
from cluster.gateway.status import Context


class Writer:
    """Routers never wait for a reader: what one has not read is held in its mailboxes, bounded by its own
    max_tokens. reader_s bounds how long: a write that waits for longer ends the stream.

    error: why it was given up, None while it goes on.
    """

    def __init__(self, context: Context, reader_s: float) -> None:
        self.error: SlowReader | None = None
        self._context = context
        self._reader_s = reader_s

    async def write(self, message: Message) -> None:
        """Raises SlowReader."""
        try:
            async with asyncio.timeout(self._reader_s):
                await self._context.write(message)
        except TimeoutError:
            self.error = SlowReader.after(self._reader_s)
            raise self.error from None
