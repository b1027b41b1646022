"""A controller of a test's own, for the commands that ask one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any, Self

import pytest

State = dict[str, Any]


class ScriptedController:
    """Answers with `plan`, or raises it, then with one state after the other.

    asked: what it heard, in order: a node's id, or the options of a rebalance.
    members: what `status` says of the nodes, from a state.
    """

    def __init__(
        self, plan: State, states: Iterable[State], members: Callable[[State], list[State]] | None = None
    ) -> None:
        self.plan: State | Exception = plan
        self.asked: list[Any] = []
        self.left = list(states)
        self._members = members

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def drain(self, node: str) -> State:
        return self._answer(node)

    def undrain(self, node: str) -> State:
        return {"node": node, "drained": False}

    def rebalance(self, **options: bool) -> State:
        return self._answer(options)

    def status(self) -> State:
        state = {"epoch": 1, "version": 2, "active": 2} | self.left.pop(0)
        return state if self._members is None else state | {"members": self._members(state)}

    def _answer(self, asked: Any) -> State:
        self.asked.append(asked)
        if isinstance(self.plan, Exception):
            raise self.plan
        return self.plan

    def install(self, monkeypatch: pytest.MonkeyPatch, polling: str) -> None:
        """Whoever asks for a controller gets this one. polling: the constant that says how often, by path."""

        def connect(address: str, folder: object) -> ScriptedController:
            assert address == "here"
            return self

        record = SimpleNamespace(require=lambda: SimpleNamespace(controller="here"))
        monkeypatch.setattr("cluster.fleet.ask.Controller", connect)
        monkeypatch.setattr("cluster.fleet.folder.Folder", lambda: record)
        monkeypatch.setattr(polling, 0.0)
