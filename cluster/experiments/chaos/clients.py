"""Clients that ask, leave, come back and try again, as docs/clients.md tells them to, and write down what
they see."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from cluster.experiments.chaos import history as h
from cluster.experiments.chaos.check import may_be_last
from cluster.experiments.chaos.history import History
from cluster.experiments.chaos.workload import Manner, Question, Turn
from cluster.retry import POLICY, Patience, Policy

WINDOW_S = 20.0
LONGEST_CALL_S = 120.0
"""A call that has not ended by then never will."""


@dataclass(frozen=True)
class Call:
    """One call of a gateway. had: tokens that the client has. window_s: of resuming; 0 for none.
    deadline_s: for the whole call."""

    request: str
    question: Question
    had: tuple[int, ...]
    window_s: float
    deadline_s: float


@dataclass(frozen=True)
class Part:
    """ids, bits: of new tokens, as `history.Tokens`. reason: "" until the last part; completion: as in
    `history.Ended`."""

    ids: tuple[int, ...]
    bits: tuple[int, ...]
    reason: str = ""
    completion: int = 0


class CallFailed(Exception):
    """A call ended with an error. Fields as in `history.Failed`."""

    def __init__(self, code: str, kind: str, emitted: int | None, message: str) -> None:
        super().__init__(message)
        self.code, self.kind, self.emitted = code, kind, emitted


class Caller(Protocol):
    """Calls of gateways, by the name of each. Both raise CallFailed."""

    def generate(self, gateway: str, call: Call) -> AsyncGenerator[Part, None]:
        """Closing it before its end cuts the call."""
        ...

    async def abort(self, gateway: str, request: str) -> None: ...


@dataclass
class _State:
    """Of a request. had: tokens. patience: on the loop's clock. acted: whether the client has done what its
    manner says."""

    patience: Patience
    had: list[int] = field(default_factory=list)
    acted: bool = False


class Client:
    """One request after the other. number: of the client; its requests' names begin with it."""

    def __init__(
        self,
        number: int,
        caller: Caller,
        gateways: Sequence[str],
        questions: Sequence[Question],
        history: History,
        policy: Policy = POLICY,
    ) -> None:
        self._number, self._caller, self._questions, self._history = number, caller, questions, history
        self._policy = policy
        self._counts = count()
        self._gateways = deque(gateways)
        self._gateways.rotate(-number)

    async def ask(self, turns: Iterator[Turn], stop: asyncio.Event) -> None:
        """Until `stop`; the request under way goes on to its end."""
        for turn in turns:
            if stop.is_set():
                return
            await self.request(f"{self._number}-{next(self._counts)}", turn)

    async def request(self, name: str, turn: Turn) -> None:
        """From its first call to its end, through errors and other gateways."""
        clock = asyncio.get_running_loop().time
        state = _State(Patience.new(clock(), self._policy))
        while True:
            try:
                if await self._call(name, turn, state):
                    return
                await asyncio.sleep(turn.pause_s)
            except CallFailed as error:
                if self._over(name, turn, state, error):
                    return
                await asyncio.sleep(state.patience.pause_s)
                state.patience = state.patience.longer()
                self._gateways.rotate(-1)

    def _over(self, name: str, turn: Turn, state: _State, error: CallFailed) -> bool:
        """Whether the client will call no more."""
        fields = {"code": error.code, "kind": error.kind, "emitted": error.emitted, "message": str(error)}
        self._history.add(h.Failed, request=name, **fields)
        if may_be_last(error.code, turn.manner):
            return True
        if not state.patience.tired(asyncio.get_running_loop().time()):
            return False
        self._history.add(h.GaveUp, request=name)
        return True

    async def _call(self, name: str, turn: Turn, state: _State) -> bool:
        """False if the client has left and will be back. Raises CallFailed."""
        gateway, manner = self._gateways[0], turn.manner
        asked = {
            "question": turn.question,
            "manner": manner.value,
            "gateway": gateway,
            "start": len(state.had),
        }
        self._history.add(h.Asked, request=name, **asked)
        window_s = WINDOW_S if manner is Manner.resume else 0.0
        call = Call(
            name,
            self._questions[turn.question],
            tuple(state.had),
            window_s,
            turn.deadline_s or LONGEST_CALL_S,
        )
        async with contextlib.aclosing(self._caller.generate(gateway, call)) as parts:
            async for part in parts:
                self._take(name, part, state)
                if part.reason:
                    self._history.add(h.Ended, request=name, reason=part.reason, completion=part.completion)
                    return True
                if len(state.had) >= turn.after and not state.acted:
                    state.acted = True
                    if manner in (Manner.leave, Manner.resume):
                        self._history.add(h.Left, request=name, back=manner is Manner.resume)
                        return manner is Manner.leave
                    if manner is Manner.abort:
                        with contextlib.suppress(CallFailed):  # the stream will tell
                            await self._caller.abort(gateway, name)
        raise CallFailed("UNKNOWN", "", None, "the stream was over before its end")

    def _take(self, name: str, part: Part, state: _State) -> None:
        if part.ids:
            self._history.add(h.Tokens, request=name, ids=part.ids, bits=part.bits)
            state.had += part.ids
            state.patience = Patience.new(asyncio.get_running_loop().time(), self._policy)
