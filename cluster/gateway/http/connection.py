"""uvicorn's HTTP/1.1 connection, with an end to waiting: for a request that does not come whole, and for a
reader that takes nothing of its answer."""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster.errors import SlowReader

log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """request_s: from the first byte, or from connecting, to the end of a request's body. reader_s: how long
    a write may wait. Both in seconds; what takes longer is cut, and its handler sees a disconnect.

    There is no answer to send: to the one the protocol has none before a request, the other does not read.
    """

    request_s: ClassVar[float]
    reader_s: ClassVar[float]

    _coming: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._watch_request()
        else:
            self._request_came()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck = self.loop.call_later(self.reader_s, self._cut, str(SlowReader.after(self.reader_s)))

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader_reads()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._request_came()
        self._reader_reads()

    def _watch_request(self) -> None:
        if self._coming is None:
            why = f"its request had not come whole after {self.request_s:g} s"
            self._coming = self.loop.call_later(self.request_s, self._cut, why)

    def _request_came(self) -> None:
        if self._coming is not None:
            self._coming.cancel()
            self._coming = None

    def _reader_reads(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _cut(self, why: str) -> None:
        log.warning("an HTTP client is cut: %s", why)
        self.transport.abort()


def bounded(request_s: float, reader_s: float) -> type[Connection]:
    """As uvicorn wants it: a class."""
    return type("BoundedConnection", (Connection,), {"request_s": request_s, "reader_s": reader_s})
