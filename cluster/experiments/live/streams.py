"""A client that keeps streams going, and notes when every token came."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeVar

from cluster.dispatch.aio import FrameStream
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.dispatch.requests import pack_request
from cluster.library.reader import Library
from cluster.types import EngineRequest, RequestId, SamplingParams

SILENT_S = 60.0
"""A router that says nothing for so long has failed."""

PROMPTS = ("And it came to pass", "To be, or not to be", "Once upon a time", "In the beginning")
TEMPERATURE = 0.8

Done = TypeVar("Done")


def sampled_requests(library: Library, count: int, tokens: int) -> list[EngineRequest]:
    """Continuations of a few texts, each with a seed of its own: as unequal a load as real text gives, and
    bits that differ anywhere soon change a token. tokens: of each, whatever ends a text."""
    prompts = [tuple(library.tokenizer().encode(text)) for text in PROMPTS]
    return [
        EngineRequest(
            RequestId(str(number)),
            prompts[number % len(prompts)],
            SamplingParams(max_tokens=tokens, temperature=TEMPERATURE, seed=number, ignore_eos=True),
        )
        for number in range(count)
    ]


@dataclass
class Stream:
    """One answer. request: its number among those that are asked again and again. times: on the monotonic
    clock. error: what it failed with, "" for nothing. ended: whether all of it came.
    """

    request: int
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    error: str = ""
    ended: bool = False


async def streams_while(
    address: str, requests: Sequence[EngineRequest], action: Callable[[], Done]
) -> tuple[list[Stream], Done]:
    """Keep one stream of every request going, each again when it ends, while `action` runs on another thread.

    Returns all streams, those that were under way at the end too. Raises TimeoutError if the router is
    silent.
    """
    doing = asyncio.create_task(asyncio.to_thread(action))
    numbers, streams = count(), dict[int, Stream]()
    async with await FrameStream.open(address, identity=Identity("gateway", "experiment", 1)) as stream:

        async def ask(place: int) -> None:
            number = next(numbers)
            streams[number] = Stream(place)
            request = replace(requests[place], request_id=RequestId(str(number)))
            await stream.send(Kind.SUBMIT, *pack_request(number, request))

        for place in range(len(requests)):
            await ask(place)
        while not doing.done():
            frame = await asyncio.wait_for(stream.recv(), SILENT_S)
            now = time.monotonic()
            for number, what, *event in frame.header["e"]:
                one = streams[number]
                if what == "t":
                    one.tokens.append(event[0])
                    one.times.append(now)
                    continue
                one.ended = True
                one.error = "" if what == "f" else f"{event[0]}: {event[1]}"
                await ask(one.request)
    return list(streams.values()), await doing
