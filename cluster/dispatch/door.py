"""A listening port, also while the process has no descriptors left."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import suppress

from cluster.errors import PortInUse

BACKLOG = 128
_EXHAUSTED = (errno.EMFILE, errno.ENFILE)


class Door:
    """Raises PortInUse where it cannot listen. `accept` never waits.

    A caller that cannot be accepted leaves the port readable, and a loop that waits for it would go round
    without rest. So one descriptor is kept for the case that none is left: the caller is accepted with it
    and hung up on.
    """

    def __init__(self, host: str, port: int) -> None:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise PortInUse(
                    f"port {port} on {host} is in use; stop what uses it or choose another"
                ) from None
            raise PortInUse(f"cannot listen on {host}:{port}: {error.strerror}") from error
        self._listener.setblocking(False)
        self._kept = os.open(os.devnull, os.O_RDONLY)

    @property
    def address(self) -> str:
        """ "host:port", with the port that the system chose if 0 was asked for."""
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self) -> socket.socket | None:
        """Whoever has called, None if that was nobody or they were hung up on."""
        try:
            return self._listener.accept()[0]
        except OSError as error:  # else the peer has gone again
            if error.errno in _EXHAUSTED:
                self._hang_up()
            return None

    def close(self) -> None:
        self._listener.close()
        if self._kept >= 0:
            os.close(self._kept)
            self._kept = -1

    def _hang_up(self) -> None:
        if self._kept >= 0:
            os.close(self._kept)
            self._kept = -1
        with suppress(OSError):
            self._listener.accept()[0].close()
        with suppress(OSError):  # somebody else was faster: the next caller waits for a turn of its own
            self._kept = os.open(os.devnull, os.O_RDONLY)
