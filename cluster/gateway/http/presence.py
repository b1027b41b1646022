"""A client that leaves ends what is done for it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from starlette.types import Receive


class while_connected:
    """Cancels its body when the client disconnects, and ends quietly then.

    Use after the request's body was read: from here on nothing but a disconnect is expected.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._left = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "inside a coroutine"
        self._body = task
        self._watch = asyncio.create_task(self._wait())
        return self

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._left = True
        self._body.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._watch.cancel()
        # Only the cancellation that came from here is swallowed, not one of a server that stops.
        return self._left and self._body.uncancel() == 0 and kind is asyncio.CancelledError
