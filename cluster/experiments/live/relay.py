"""A link that can be cut: a TCP relay that, when told to, passes nothing on and closes nothing.

That is what a pulled cable looks like to both ends: no reset, no end of stream, only silence.
"""

from __future__ import annotations

import selectors
import socket
import threading
from contextlib import suppress
from typing import Self

from cluster.dispatch.handshake import split_address

CHUNK = 1 << 16
TICK_S = 0.05


class Relay:
    """Lifecycle: a context manager. `address` is where clients connect; cut() and mend() from any thread.

    While it is cut, new connections are taken, and nothing is said on them.
    """

    def __init__(self, target: str, host: str = "127.0.0.1") -> None:
        self._target = split_address(target)
        self._listener = socket.create_server((host, 0))
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._passing = threading.Event()
        self._passing.set()
        self._closing = threading.Event()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._passing.set()
        self._thread.join()

    def cut(self) -> None:
        self._passing.clear()

    def mend(self) -> None:
        """Whatever was sent meanwhile arrives now."""
        self._passing.set()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, self._listener:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._closing.is_set():
                if not self._passing.wait(TICK_S):
                    continue
                for key, _ in selector.select(TICK_S):
                    if not self._passing.is_set():
                        break
                    if key.fileobj is self._listener:
                        self._accept(selector)
                    elif isinstance(key.fileobj, socket.socket):
                        self._pass_on(selector, key.fileobj)
            for sock in self._peers:
                sock.close()

    def _accept(self, selector: selectors.BaseSelector) -> None:
        client, _ = self._listener.accept()
        try:
            server = socket.create_connection(self._target)
        except OSError:  # nobody is there: the client sees what it would see without us
            client.close()
            return
        for sock, peer in ((client, server), (server, client)):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._peers[sock] = peer
            selector.register(sock, selectors.EVENT_READ)

    def _pass_on(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        peer = self._peers.get(sock)
        if peer is None:  # it was closed with its peer a moment ago
            return
        data = b""
        with suppress(OSError):
            data = sock.recv(CHUNK)
            if data:
                peer.sendall(data)
                return
        for each in (sock, peer):
            selector.unregister(each)
            del self._peers[each]
            each.close()
