"""What sealed links cost: the time to seal and to open what one frame carries, without sockets."""

from __future__ import annotations

import os
import time

from cluster.dispatch.decoder import FrameDecoder
from cluster.dispatch.frames import FRAGMENT_BYTES, fragment_prefix, pack_header
from cluster.dispatch.kinds import Kind
from cluster.dispatch.seal import Share

SIZES = {"2KiB": 2 << 10, "32KiB": 32 << 10, "16MiB": 16 << 20}
"""A token's row of a large model on its way out, its results on their way back, those of a long prompt."""

REPEATS = 5
BYTES = 32 << 20
"""Sealed and opened in each repeat, at most `MOST` times."""

MOST = 500


def measure_seal(size: int) -> tuple[list[float], list[float]]:
    """µs to seal and to open a message of `size` bytes, the mean of each repeat. The latter with the decoding
    of its frames."""
    client, server = Share(), Share()
    key, said = os.urandom(32), b""
    sealer = client.session(server.public, key, said, server=False).sealer()
    opener = server.session(client.public, key, said, server=True).decoder(FrameDecoder())
    chunks = _chunks(os.urandom(size))
    count = max(1, min(MOST, BYTES // size))
    sealing, opening = [], []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        sealed = [[sealer.seal(chunk) for chunk in chunks] for _ in range(count)]
        middle = time.perf_counter()
        for message in sealed:
            for records in message:
                opener.feed(records)
        sealing.append((middle - begin) / count * 1e6)
        opening.append((time.perf_counter() - middle) / count * 1e6)
    return sealing, opening


def _chunks(payload: bytes) -> list[list[bytes | memoryview]]:
    """As an outbox gives them: a small message at once, a large one fragment by fragment."""
    head = pack_header(Kind.RESULT, [0] * 10, len(payload), stream=1)
    if len(payload) <= FRAGMENT_BYTES:
        return [[head, payload]]
    view = memoryview(payload)
    pieces = [view[at : at + FRAGMENT_BYTES] for at in range(0, len(payload), FRAGMENT_BYTES)]
    chunks: list[list[bytes | memoryview]] = [[head]]
    chunks += [[fragment_prefix(Kind.RESULT, 1, len(piece)), piece] for piece in pieces]
    return chunks
