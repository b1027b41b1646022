"""Ctrl-C and its relatives as something to ask about, not as an exception that may come anywhere.

An exception out of a signal handler can come in the middle of an import, of a callback of Ray's that swallows
it, or between the start of a process and the note of its pid.
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Signals:
    """While the context is open, signals that end a process are noted; `check` raises where it suits.

    Main thread only. The handlers are ours rather than SIG_IGN, which processes that we start would inherit.
    """

    def __init__(self) -> None:
        self.noted: signal.Signals | None = None
        self._before = [signal.getsignal(number) for number in ENDING]

    def listen(self) -> None:
        """Also again after a library has put its own handlers there: Ray's end in a trace and an abort."""
        for number in ENDING:
            signal.signal(number, self._note)

    def check(self) -> None:
        """Raises KeyboardInterrupt after SIGINT, SystemExit with the shell's code after another."""
        if self.noted is signal.SIGINT:
            raise KeyboardInterrupt
        if self.noted is not None:
            raise SystemExit(128 + self.noted)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.noted = self.noted or signal.Signals(number)

    def __enter__(self) -> Signals:
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in zip(ENDING, self._before, strict=True):
            # A shell starts background jobs with SIGINT ignored: afterwards Ctrl-C is heard all the same.
            ignored = number is signal.SIGINT and handler in (signal.SIG_IGN, None)
            signal.signal(number, signal.default_int_handler if ignored else handler or signal.SIG_DFL)
