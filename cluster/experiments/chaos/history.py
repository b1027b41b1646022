"""What happened in a run, in order: one JSON object a line, written as it happens, so that the history of a
run that broke off can be read too. Prompts are not in it: a question is named by its number.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TextIO


@dataclass(frozen=True)
class Event:
    """t: seconds after `History.start`."""

    name: ClassVar[str] = ""
    t: float


@dataclass(frozen=True)
class Asked(Event):
    """A call. request: the same for all calls that go on with one answer. start: resume_from, the tokens
    that the client has."""

    name = "asked"
    request: str
    question: int
    manner: str
    gateway: str
    start: int


@dataclass(frozen=True)
class Tokens(Event):
    """They came in one message. bits: of their log-probabilities, as float32."""

    name = "tokens"
    request: str
    ids: tuple[int, ...]
    bits: tuple[int, ...]


@dataclass(frozen=True)
class Ended(Event):
    """The call ended well. completion: tokens that the gateway says were generated."""

    name = "ended"
    request: str
    reason: str
    completion: int


@dataclass(frozen=True)
class Failed(Event):
    """The call ended with an error. kind: its class, "" where no gateway of ours has answered. emitted:
    tokens that the gateway says it sent in this call, None where it does not say."""

    name = "failed"
    request: str
    code: str
    kind: str
    emitted: int | None
    message: str = ""


@dataclass(frozen=True)
class Left(Event):
    """The client has cut the call. back: whether it will come again."""

    name = "left"
    request: str
    back: bool


@dataclass(frozen=True)
class GaveUp(Event):
    """The client has tried for as long as it wanted to."""

    name = "gave-up"
    request: str


@dataclass(frozen=True)
class Begun(Event):
    """A fault."""

    name = "begun"
    number: int
    kind: str
    victim: str


@dataclass(frozen=True)
class Over(Event):
    """A fault is lifted, or a new process of the victim's name is there."""

    name = "over"
    number: int


@dataclass(frozen=True)
class Unhealed(Event):
    """Something was not as it was before within the time that it was given."""

    name = "unhealed"
    what: str


@dataclass(frozen=True)
class Held(Event):
    """What a process has while no request runs. first: of its role, before any fault. owed: what belongs to
    requests, by name."""

    name = "held"
    process: str
    role: str
    first: bool
    owed: dict[str, int]
    threads: int
    fds: int
    rss: int


@dataclass(frozen=True)
class Stopped(Event):
    """The run has ended by itself; nothing comes behind this."""

    name = "stopped"


KINDS: dict[str, type[Event]] = {
    each.name: each
    for each in (Asked, Tokens, Ended, Failed, Left, GaveUp, Begun, Over, Unhealed, Held, Stopped)
}


@dataclass
class History:
    """Written by any thread. file: also gets every event; None keeps them in memory alone."""

    file: TextIO | None = None
    clock: Callable[[], float] = time.monotonic
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.start()

    def start(self) -> None:
        """Count time from now on."""
        self._start = self.clock()

    @property
    def now(self) -> float:
        return self.clock() - self._start

    def add(self, what: type[Event], /, **fields: Any) -> None:
        """An event of now."""
        with self._lock:
            event = what(round(self.now, 4), **fields)
            self.events.append(event)
            if self.file is not None:
                self.file.write(to_line(event) + "\n")
                self.file.flush()


def to_line(event: Event) -> str:
    return json.dumps({"event": event.name, **asdict(event)}, separators=(",", ":"))


def from_lines(lines: Iterable[str]) -> list[Event]:
    """Raises ValueError, KeyError or TypeError for what no History has written."""
    return [_event(json.loads(line)) for line in lines]


def _event(fields: dict[str, Any]) -> Event:
    kind: Callable[..., Event] = KINDS[fields.pop("event")]
    return kind(**{name: tuple(it) if isinstance(it, list) else it for name, it in fields.items()})
