"""A client of one router that measures its steps: every step's tokens come in one frame."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np

from cluster.balance.fleet import Floats
from cluster.dispatch.aio import FrameStream
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import error_from_wire
from cluster.types import EngineRequest

STEP_WITHIN_S = 30.0

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Generated:
    """tokens: of each request. step_s: seconds from one step that gave every request a token to the next."""

    tokens: tuple[tuple[int, ...], ...]
    step_s: Floats


async def generate(address: str, requests: Sequence[EngineRequest]) -> Generated:
    """Send all requests at once and read their tokens. Raises what a request failed with, and Unavailable."""
    tokens: list[list[int]] = [[] for _ in requests]
    last: float | None = None
    step_s: list[float] = []
    async with await FrameStream.open(address, identity=Identity("gateway", "experiment", 1)) as stream:
        for number, request in enumerate(requests):
            header = {
                "n": number,
                "id": str(request.request_id),
                "kind": request.kind,
                "sampling": asdict(request.sampling),
            }
            await stream.send(Kind.SUBMIT, header, np.asarray(request.prompt_ids, "<i4").tobytes())
        left = len(requests)
        while left:
            frame = await asyncio.wait_for(stream.recv(), STEP_WITHIN_S)
            now = time.perf_counter()
            came = [event for event in frame.header["e"] if event[1] == "t"]
            for number, what, *event in frame.header["e"]:
                if what == "t":
                    tokens[number].append(event[0])
                elif what == "f":
                    left -= 1
                else:
                    raise error_from_wire(event[0], event[1])
            whole = len(came) == len(requests)
            if whole and last is not None:
                step_s.append(now - last)
            last = now if whole else None
    return Generated(tuple(map(tuple, tokens)), np.array(step_s))


async def generate_while(
    address: str, requests: Sequence[EngineRequest], action: Callable[[], Answer]
) -> tuple[list[Generated], Answer]:
    """Send the requests again and again, at least once, while `action` runs on a thread of its own."""
    done = asyncio.create_task(asyncio.to_thread(action))
    answers = [await generate(address, requests)]
    while not done.done():
        answers.append(await generate(address, requests))
    return answers, await done
