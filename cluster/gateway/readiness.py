"""Whether a token can be produced end to end: a recent one is the proof, else a probe asks for one."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from cluster.errors import MoemeshError
from cluster.gateway.pool import RouterPool

log = logging.getLogger(__name__)

PROVEN_S = 10.0
"""How long a token proves that another can be had; an idle gateway asks for one this often."""

PROBE_S = 10.0
"""A token later than this is none: a router at work answers within a step or two."""

RETRY_S = 0.5


class Readiness:
    """Runs on the gateway's loop. `on_change` hears True and False, each only after the other."""

    def __init__(
        self, pool: RouterPool, on_change: Callable[[bool], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pool = pool
        self._on_change = on_change
        self._clock = clock
        self._routers_changed = asyncio.Event()
        self._failing_since: float | None = None
        self._error = ""
        self.ready = False

    def routers_changed(self, any_connected: bool) -> None:
        """Without a router nothing can be produced, whatever was proven before."""
        if not any_connected:
            self._set(False)
        self._routers_changed.set()

    @property
    def failing(self) -> tuple[float, str]:
        """(seconds for which probes have ended with errors, the last error); (0, "") if the last one did not.
        One that is only late is no error: it may be the machine that is slow."""
        since = self._failing_since
        return (0.0, "") if since is None else (self._clock() - since, self._error)

    async def watch(self) -> None:
        """Prove it again and again; ends by cancellation."""
        while True:
            self._routers_changed.clear()
            pause = await self._check()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._routers_changed.wait()

    async def _check(self) -> float | None:
        """Seconds until the next look; None waits for a router."""
        if not self._pool.ready:
            return None
        since = self._clock() - self._pool.meter.last_token
        if self.ready and since < PROVEN_S:
            return PROVEN_S - since
        proven = await self._probe()
        self._set(proven and self._pool.ready)
        return PROVEN_S if proven else RETRY_S

    async def _probe(self) -> bool:
        begin = self._clock()
        try:
            async with asyncio.timeout(PROBE_S):
                await self._pool.probe()
        except (MoemeshError, TimeoutError) as error:
            # A full queue is no failure while others have their tokens.
            working = self._clock() - self._pool.meter.last_token < PROVEN_S
            if self.ready and not working:
                log.warning("no token can be produced: %s", str(error) or f"none within {PROBE_S:g} s")
            self._note("" if working else str(error), begin)
            return working
        self._note("", begin)
        return True

    def _note(self, error: str, begin: float) -> None:
        """error: of a probe since `begin`, "" if it had none."""
        self._error = error
        if not error:
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = begin

    def _set(self, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._on_change(ready)
