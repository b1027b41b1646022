"""uvicorn's HTTP/1.1, with an end to its patience."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 60.0
"""From the first byte of a request, or from the connection, to the last byte of its body."""


class TimedProtocol(H11Protocol):
    """Cuts a connection whose request does not come to its end in time: a client that sends a byte now and
    then would hold it for ever. The answer, and the pause between two requests, are uvicorn's matter."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self._answering():
            self._unwatch()
        elif self._timer is None:
            self._timer = self.loop.call_later(REQUEST_S, self.transport.abort)

    def _answering(self) -> bool:
        """Whether a whole request is there whose answer is not."""
        begun = self.cycle is not None  # as it is before the first request, whatever its type says
        return begun and not self.cycle.response_complete and not self.cycle.more_body

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
