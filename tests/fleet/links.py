"""What one direction of a link does to packets: a pure model, driven by tests/fleet/switch.py."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

QUEUE_BYTES = 256 << 10
"""What waits before a link with a rate; a packet beyond it is dropped, as by a router's full queue."""


@dataclass(frozen=True)
class Link:
    """One direction. delay_s: for every packet; jitter_s: up to so much more, drawn evenly, in order all the
    same. loss: part of the packets that vanish, 0 to 1. bytes_per_s: 0 is no limit. cut: nothing arrives.
    closed: nothing arrives at these TCP ports, as behind a firewall."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    bytes_per_s: float = 0.0
    cut: bool = False
    closed: tuple[int, ...] = ()


class Line:
    """A link in use. Packets leave it in the order in which they came, also after `link` was replaced."""

    def __init__(self, link: Link, random: Random) -> None:
        self.link = link
        self._random = random
        self._free_at = self._last = 0.0

    def arrival(self, now: float, size: int, packets: int = 1) -> float | None:
        """When `size` bytes sent `now` (seconds) arrive; None: never. packets: that the bytes are on the
        wire, where the kernel gives several as one; if one of them is lost all are."""
        link = self.link
        if link.cut or (link.loss and self._random.random() < 1 - (1 - link.loss) ** packets):
            return None
        sent = now
        if link.bytes_per_s:
            begin = max(now, self._free_at)
            if (begin - now) * link.bytes_per_s > QUEUE_BYTES:
                return None
            sent = self._free_at = begin + size / link.bytes_per_s
        self._last = max(self._last, sent + link.delay_s + self._random.random() * link.jitter_s)
        return self._last
