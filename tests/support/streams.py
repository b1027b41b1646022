"""A router asked over its front door, for tests of real roles."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from cluster.dispatch.aio import FrameStream
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.dispatch.requests import pack_request
from cluster.types import EngineRequest

CLIENT = Identity("gateway", "g", 1)
SILENT_S = 30.0


async def tokens_of(stream: FrameStream, requests: Mapping[int, EngineRequest]) -> dict[int, list[int]]:
    """The tokens of every request, asked together. Fails at any event but a token or an end."""
    tokens: dict[int, list[int]] = {number: [] for number in requests}
    for number, each in requests.items():
        await stream.send(Kind.SUBMIT, *pack_request(number, each))
    left = len(tokens)
    while left:
        frame = await asyncio.wait_for(stream.recv(), SILENT_S)
        for number, what, *event in frame.header["e"]:
            assert what in "tf", (number, what, event)
            left -= what == "f"
            if what == "t":
                tokens[number].append(event[0])
    return tokens
