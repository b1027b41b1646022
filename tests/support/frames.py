"""Frame servers for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.dispatch.connection import Connection
from cluster.dispatch.frames import Frame
from cluster.dispatch.kinds import Kind
from cluster.dispatch.server import FrameServer


@contextmanager
def serving(on_frame: Callable[[Connection, Frame], None], **options: Any) -> Iterator[FrameServer]:
    server = FrameServer(on_frame=on_frame, **options)
    server.start()
    try:
        yield server
    finally:
        server.shutdown()


def echo(connection: Connection, frame: Frame) -> None:
    connection.send(Kind.REPLY, frame.header, frame.payload)
