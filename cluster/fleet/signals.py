"""Steps that a signal must not cut in half."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

UNWINDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_held() -> Iterator[list[int]]:
    """Signals that would unwind this process are noted in the list instead, and then forgotten.

    By handlers of ours, not SIG_IGN, which a child would inherit. Main thread only.
    """
    noted: list[int] = []
    before = [signal.signal(number, lambda received, _: noted.append(received)) for number in UNWINDING]
    try:
        yield noted
    finally:
        for number, handler in zip(UNWINDING, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def signals_later() -> Iterator[None]:
    """For steps that must be noted down before anything may interrupt them."""
    with signals_held() as noted:
        yield
    if noted:
        signal.raise_signal(noted[0])
