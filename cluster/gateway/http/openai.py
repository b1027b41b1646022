"""The routes of OpenAI's dialect, over the same admission and the same runs as the gRPC services."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from cluster.gateway import admission, whole
from cluster.gateway.admission import Admitted
from cluster.gateway.admit import admit, check_place, draw_id
from cluster.gateway.front import Front
from cluster.gateway.http import errors, openai_answer
from cluster.gateway.http.body import Fields, read_object
from cluster.gateway.http.events import DONE, EventStream, event
from cluster.gateway.http.openai_answer import Answer, Chats, Completions, Dialect, Head, Usage, Whole
from cluster.gateway.http.openai_request import (
    Prompt,
    TextAsked,
    read_chat,
    read_completion,
    read_embeddings,
)
from cluster.gateway.http.presence import while_connected
from cluster.gateway.run import Delta, Run
from cluster.model.tokenizer import Tokenizer

T = TypeVar("T")

REQUEST_ID = "x-request-id"
LEFT = 499
"""The client has gone; nobody reads this."""


class OpenAi:
    """most_bytes: largest body. wall: seconds since 1970."""

    def __init__(self, front: Front, most_bytes: int, wall: Callable[[], float] = time.time) -> None:
        self._front = front
        self._served = front.served
        self._most_bytes = most_bytes
        self._wall = wall
        self._since = int(wall())

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        admission.check_model(request.path_params["name"], self._served.name)
        return JSONResponse(self._model())

    async def completions(self, request: Request) -> ASGIApp:
        asked = await self._read(request, read_completion)
        return await self._answer(request, asked, Completions(self._spelling(asked)))

    async def chats(self, request: Request) -> ASGIApp:
        asked = await self._read(request, read_chat)
        return await self._answer(request, asked, Chats(self._spelling(asked)))

    async def embeddings(self, request: Request) -> Response:
        """Of unit length, as the dialect's are."""
        asked = read_embeddings(await read_object(request, self._most_bytes))
        admission.check_model(asked.model, self._served.name)
        limits, pool = self._served.limits, self._front.pool
        prompts = [admission.check_prompt(await self._tokens(each), limits, room=0) for each in asked.prompts]
        tokens = sum(map(len, prompts))
        async with while_connected(request.receive):
            with pool.charge_once(len(prompts)) as charged:
                calls = [whole.embed(pool, each, normalise=True, charged=charged) for each in prompts]
                rows = await _together(calls)
            return JSONResponse(openai_answer.embeddings(self._served.name, rows, asked.base64, tokens))
        return Response(status_code=LEFT)

    async def _read(self, request: Request, read: Callable[[Fields], TextAsked]) -> TextAsked:
        asked = read(await read_object(request, self._most_bytes))
        admission.check_model(asked.model, self._served.name)
        return asked

    async def _answer(self, request: Request, asked: TextAsked, dialect: Dialect) -> ASGIApp:
        name = asked.request_id or request.headers.get(REQUEST_ID, "") or draw_id()
        admitted = await self._admit(asked, name)
        runs = Runs(self._front, admitted)
        head = Head(f"{dialect.prefix}{name}", int(self._wall()), self._served.name)
        headers = {REQUEST_ID: name}
        runs.open()  # what refuses the request is a status, also of a stream
        if asked.stream:
            return EventStream(_chunks(runs, asked, dialect, head), headers, runs)
        with runs:
            async with while_connected(request.receive):
                return JSONResponse(await _whole(runs, dialect, head), headers=headers)
        return Response(status_code=LEFT)

    async def _admit(self, asked: TextAsked, name: str) -> list[Admitted]:
        check_place(self._front.pool, asked.wishes)
        prompts = [await self._tokens(each) for each in asked.prompts]
        if not prompts:
            prompts = [await self._served.tokenise_chat(asked.messages)]
        many = len(prompts) > 1
        return [
            await admit(
                self._served,
                prompt,
                asked.wishes,
                request_id=f"{name}-{place}" if many else name,
                tier=asked.tier,
            )
            for place, prompt in enumerate(prompts)
        ]

    async def _tokens(self, prompt: Prompt) -> Sequence[int]:
        return await self._served.tokenise(prompt) if isinstance(prompt, str) else prompt

    def _spelling(self, asked: TextAsked) -> Tokenizer | None:
        return self._served.tokenizer if asked.logprobs else None

    def _model(self) -> Answer:
        return openai_answer.model(self._served.name, self._since)


class Runs:
    """The runs of all prompts of one body. Choice: number of the prompt × n + number of the sample.

    Use as a context manager after `open`: leaving it aborts what still runs.
    """

    def __init__(self, front: Front, admitted: Sequence[Admitted]) -> None:
        self._front = front
        self._admitted = admitted
        self._stack = ExitStack()
        self._runs: list[Run] = []
        self._followers: list[asyncio.Task[None]] = []
        self.choices = sum(each.samples for each in admitted)
        self.usage = Usage(sum(len(each.prompt_ids) for each in admitted))

    def open(self) -> None:
        """Submit all. Raises what refuses one of them, with none left behind."""
        served, pool = self._front.served, self._front.pool
        with ExitStack() as entered:
            charged = entered.enter_context(pool.charge_once(len(self._admitted)))
            for each in self._admitted:
                run = Run(served, pool, each, charged)
                self._runs.append(entered.enter_context(run))
            self._stack = entered.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._followers:
            task.cancel()
        self._stack.close()

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """(choice, delta) as they come. Raises the error that ended one of them."""
        source = self._one() if len(self._runs) == 1 else self._merged()
        async for choice, delta in source:
            if delta.outcome is not None:
                self.usage.add(delta.outcome)
            yield choice, delta

    async def _one(self) -> AsyncIterator[tuple[int, Delta]]:
        async for delta in self._runs[0]:
            yield delta.index, delta

    async def _merged(self) -> AsyncIterator[tuple[int, Delta]]:
        """Of several runs, a task each. A reader that is slow holds them up and they gather."""
        ready: asyncio.Queue[tuple[int, Delta] | Exception] = asyncio.Queue(maxsize=len(self._runs))

        async def follow(place: int, run: Run) -> None:
            try:
                async for delta in run:
                    await ready.put((place * run.admitted.samples + delta.index, delta))
            except Exception as error:
                await ready.put(error)  # raised by whoever reads

        self._followers = [asyncio.create_task(follow(i, run)) for i, run in enumerate(self._runs)]
        left = self.choices
        while left:
            news = await ready.get()
            if isinstance(news, Exception):
                raise news
            left -= news[1].outcome is not None
            yield news


async def _together(calls: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; the first error ends the others."""
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _whole(runs: Runs, dialect: Dialect, head: Head) -> Answer:
    choices = [Whole() for _ in range(runs.choices)]
    async for choice, delta in runs.deltas():
        choices[choice].add(delta)
    parts = [dialect.choice(index, each.to_delta()) for index, each in enumerate(choices)]
    return head.of(dialect.whole, parts, runs.usage.to_answer())


async def _chunks(runs: Runs, asked: TextAsked, dialect: Dialect, head: Head) -> AsyncGenerator[bytes, None]:
    try:
        for choice in range(runs.choices):
            opening = dialect.opening(choice)
            if opening is not None:
                yield event(head.of(dialect.chunk, [opening]))
        async for choice, delta in runs.deltas():
            # A token that completes no character has nothing to show, unless its log-probability is wanted.
            if delta.text or asked.logprobs or delta.outcome is not None:
                yield event(head.of(dialect.chunk, [dialect.part(choice, delta)]))
        if asked.include_usage:
            yield event(head.of(dialect.chunk, [], runs.usage.to_answer()))
        yield DONE
    except Exception as error:
        # The status has been sent: the dialect's clients look for an error among the events.
        yield event(errors.body_of(errors.known(error)))
