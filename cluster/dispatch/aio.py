"""Frames on asyncio, for the gateway. Nothing on the dispatch path comes here."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, cast

from cluster.dispatch import tcp
from cluster.dispatch.connection import Buffer
from cluster.dispatch.decoder import FrameDecoder, GreetingDecoder
from cluster.dispatch.frames import (
    DEFAULT_LIMITS,
    FRAGMENT_BYTES,
    PROTOCOL,
    Frame,
    Header,
    Limits,
    fragment_prefix,
    pack_header,
)
from cluster.dispatch.greeting import Greeting, must_seal
from cluster.dispatch.handshake import Identity, split_address
from cluster.dispatch.kinds import FIRST_ORDERED, Kind
from cluster.errors import MoemeshError, ProtocolError, Tampered, Unavailable

if TYPE_CHECKING:
    from cluster.dispatch.seal import SealedDecoder, Sealer, Session

CONNECT_S = 5.0
READ_AHEAD_BYTES = 1 << 20
"""Frames received beyond what `recv` took; above it the socket is left unread until the owner catches up."""

FRAME_COST = 256


class FrameStream(asyncio.BufferedProtocol):
    """One connection of frames, from `await FrameStream.open(address)`; send from any task, recv from one.

    server: the Identity that the server answered, if one was given to `open`. received: bytes so far.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, greeting: bool = False) -> None:
        """greeting: the peer is not known yet; `open` sees to it."""
        self.server: Identity | None = None
        self.received = 0
        self._limits = limits
        self._decoder: FrameDecoder | SealedDecoder = GreetingDecoder() if greeting else FrameDecoder(limits)
        self._sealer: Sealer | None = None
        self._protocol = PROTOCOL
        self._transport: asyncio.Transport | None = None
        self._frames: deque[Frame] = deque()
        self._ahead = 0
        self._arrived = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._ordered = asyncio.Lock()
        self._error: MoemeshError | None = None
        self._lost = asyncio.Event()
        self._streams = 0

    @staticmethod
    async def open(
        address: str,
        *,
        identity: Identity | None = None,
        limits: Limits = DEFAULT_LIMITS,
        timeout_s: float = CONNECT_S,
    ) -> FrameStream:
        """Connect, and with an `identity` say HELLO. Raises Unavailable or what the server refused with."""
        host, port = split_address(address)
        loop = asyncio.get_running_loop()
        stream: FrameStream | None = None
        try:
            async with asyncio.timeout(timeout_s):
                greets = identity is not None
                _, stream = await loop.create_connection(lambda: FrameStream(limits, greets), host, port)
                if identity is not None:
                    await stream._introduce(identity)
                return stream
        except BaseException as error:
            if stream is not None:
                await stream.close()
            if not isinstance(error, OSError):  # TimeoutError is one
                raise
            raise Unavailable(f"cannot connect to {address}: {str(error) or 'no answer in time'}") from error

    @property
    def closed(self) -> bool:
        return self._error is not None

    @property
    def ahead_bytes(self) -> int:
        """About how much was received that nobody has taken yet."""
        return self._ahead

    async def send(self, kind: Kind, header: Header, *buffers: Buffer) -> None:
        """Returns when the bytes are with the socket or its small buffer. Raises Unavailable when closed."""
        body = memoryview(buffers[0] if len(buffers) == 1 else b"".join(buffers)).cast("B")
        if kind < FIRST_ORDERED:
            await self._write(kind, header, body)
        else:
            async with self._ordered:
                await self._write(kind, header, body)

    def send_now(self, kind: Kind, header: Header, body: bytes) -> bool:
        """Whether it could be sent without waiting, and so has been. Behind an ordered one that is being sent
        it would have to wait."""
        waits = len(body) > FRAGMENT_BYTES or self._ordered.locked() or not self._may_write.is_set()
        if waits or self._transport is None or self._error is not None:
            return False
        self._put(self._transport, pack_header(kind, header, len(body), protocol=self._protocol), body)
        return True

    async def recv(self) -> Frame:
        """The next frame. Raises Unavailable at the end of the stream, ProtocolError on a broken one."""
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._arrived.clear()
            await self._arrived.wait()
        frame = self._frames.popleft()
        before = self._ahead
        self._ahead -= FRAME_COST + len(frame.payload)
        if before > READ_AHEAD_BYTES >= self._ahead and self._transport is not None and self._error is None:
            self._transport.resume_reading()
        return frame

    async def close(self, why: MoemeshError | None = None) -> None:
        """Idempotent; waits until the socket is closed. why: what whoever receives is told."""
        self._error = self._error or why
        if self._transport is not None:
            self._transport.abort()
            await self._lost.wait()

    async def __aenter__(self) -> FrameStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _introduce(self, identity: Identity) -> None:
        assert self._transport is not None, "it has connected"
        greeting = Greeting(identity, must_seal(identity, self._transport.get_extra_info("socket")))
        await self.send(Kind.HELLO, greeting.hello())
        while (proof := greeting.answer(await self.recv())) is not None:
            session = greeting.session
            if session is not None:
                self._admit(session)
            await self.send(Kind.PROOF, proof)
            self._sealer = None if session is None else session.sealer()
        if greeting.session is None:
            self._admit(None)
        self._protocol = greeting.protocol
        self.server = greeting.server

    def _admit(self, session: Session | None) -> None:
        """The server is known: take everything from it, sealed if there is a `session`.

        Raises ProtocolError if something came before it was due: it may be from somebody else.
        """
        if self._frames or not self._decoder.at_rest:
            raise ProtocolError("the peer speaks on before it was answered")
        frames = FrameDecoder(self._limits)
        self._decoder = frames if session is None else session.decoder(frames)

    async def _write(self, kind: Kind, header: Header, body: memoryview) -> None:
        transport = self._transport
        if transport is None or self._error is not None:
            raise self._error or Unavailable("the connection is closed")
        if len(body) <= FRAGMENT_BYTES:
            self._put(transport, pack_header(kind, header, len(body), protocol=self._protocol), body)
            await self._drained()
            return
        self._streams = stream = self._streams % 0xFFFF + 1
        self._put(transport, pack_header(kind, header, len(body), stream, self._protocol))
        try:
            for at in range(0, len(body), FRAGMENT_BYTES):
                piece = body[at : at + FRAGMENT_BYTES]
                self._put(transport, fragment_prefix(kind, stream, len(piece), self._protocol), piece)
                await self._drained()
        except asyncio.CancelledError:
            transport.abort()  # the peer could not make sense of half a message
            raise

    def _put(self, transport: asyncio.Transport, *buffers: bytes | memoryview) -> None:
        transport.write(b"".join(buffers) if self._sealer is None else self._sealer.seal(buffers))

    async def _drained(self) -> None:
        await self._may_write.wait()
        if self._error is not None:
            raise self._error

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it
        tcp.prepare(transport.get_extra_info("socket"))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.buffer()

    def buffer_updated(self, nbytes: int) -> None:
        assert self._transport is not None
        before = self._ahead
        self.received += nbytes
        try:
            for frame in self._decoder.advance(nbytes):
                self._frames.append(frame)
                self._ahead += FRAME_COST + len(frame.payload)
        except (ProtocolError, Tampered) as error:
            self._error = error
            self._transport.abort()
        self._arrived.set()
        if before <= READ_AHEAD_BYTES < self._ahead:
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._error is None:
            self._error = Unavailable(f"the connection is closed{f': {exc}' if exc else ''}")
        self._arrived.set()
        self._may_write.set()
        self._lost.set()
