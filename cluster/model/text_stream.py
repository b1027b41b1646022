"""From generated ids to the text that a client sees: whole characters, up to the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.model.tokenizer import Tokenizer


class StopText:
    """Passes text on up to the first stop string that becomes complete, and holds back what may begin one.

    However the text is cut into pieces, the same characters come out: the stop string that ends first
    counts, of several that end together the longest.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found: str | None = None
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> str:
        """What may be shown now; nothing more once a stop string was `found`."""
        if self.found is not None or not text:
            return ""
        self._held += text
        ends = [
            (place + len(stop), place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0
        ]
        if ends:
            _, place, self.found = min(ends)
            return self._take(place, keep=False)
        return self._take(len(self._held) - max(map(self._overlap, self._stops), default=0))

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        return self._take(len(self._held))

    def _take(self, count: int, keep: bool = True) -> str:
        shown, rest = self._held[:count], self._held[count:]
        self._held = rest if keep else ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the text that begins this stop string."""
        longest = min(len(self._held), len(stop) - 1)
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)


class TextStream:
    """Ids in, text out. `stopped`: the stop string that ended it, None while none did."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._decoder = tokenizer.stream()
        self._stop = StopText(stops) if stops else None

    @property
    def stopped(self) -> str | None:
        return None if self._stop is None else self._stop.found

    def push(self, ids: Sequence[int]) -> tuple[str, int]:
        """(text that has become certain, ids taken): fewer than were given if one completed a stop string."""
        if self._stop is None:
            return "".join([self._decoder.push(token) for token in ids]), len(ids)
        text = ""
        for taken, token in enumerate(ids, 1):
            text += self._stop.push(self._decoder.push(token))
            if self._stop.found is not None:
                return text, taken
        return text, len(ids)

    def flush(self) -> str:
        """The rest of the text when no id follows, with U+FFFD for an unfinished character; may stop, too."""
        text = self._decoder.flush()
        if self._stop is None:
            return text
        return self._stop.push(text) + ("" if self._stop.found is not None else self._stop.flush())
