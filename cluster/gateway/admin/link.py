"""The gateway's questions to the controller."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from cluster.dispatch.aio import FrameStream
from cluster.dispatch.handshake import Identity, error_of
from cluster.dispatch.kinds import Kind
from cluster.errors import Unavailable

ANSWER_S = 5.0
PLACING_S = 120.0
"""Placing the experts of a large model takes seconds."""


class ControllerLink:
    """A connection a question: placing takes long, and a gateway's own reports must not wait for it."""

    def __init__(self, address: str, identity: Identity) -> None:
        self._address = address
        self._identity = identity

    async def status(self) -> Mapping[str, Any]:
        """As `cluster.controller.state.status` and `detail`."""
        return await self._ask(Kind.STATUS, {"detail": True}, ANSWER_S)

    async def rebalance(self, dry_run: bool, force: bool) -> Mapping[str, Any]:
        """As `cluster.controller.rebalance.describe`, with `started`."""
        return await self._ask(Kind.REBALANCE, {"dry_run": dry_run, "force": force}, PLACING_S)

    async def drain(self, node: str) -> Mapping[str, Any]:
        """As `rebalance`."""
        return await self._ask(Kind.DRAIN, {"node": node}, PLACING_S)

    async def undrain(self, node: str) -> None:
        await self._ask(Kind.DRAIN, {"node": node, "undo": True}, PLACING_S)

    async def tiers(self) -> list[str]:
        return list((await self._ask(Kind.TIERS, {}, ANSWER_S))["tiers"])

    async def set_tiers(self, tiers: list[str]) -> list[str]:
        """Returns those that are offered now."""
        return list((await self._ask(Kind.TIERS, {"tiers": tiers}, ANSWER_S))["tiers"])

    async def _ask(self, kind: Kind, header: dict[str, Any], timeout_s: float) -> Mapping[str, Any]:
        """Raises Unavailable if the controller does not answer in time, and what it answered with."""
        try:
            async with asyncio.timeout(timeout_s), await self._open() as stream:
                await stream.send(kind, header)
                frame = await stream.recv()
        except TimeoutError:
            raise Unavailable(f"the controller did not answer within {timeout_s:g} s; try again") from None
        if frame.kind is Kind.ERROR:
            raise error_of(frame.header)
        answer: Mapping[str, Any] = frame.header
        return answer

    async def _open(self) -> FrameStream:
        return await FrameStream.open(self._address, identity=self._identity)
