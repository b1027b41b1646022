"""Which KV pages are free, which are in use, and which are kept for what is in them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class PagePool:
    """A page is held by any number of sequences. One that nobody holds is free to be taken: at once where
    nothing is known of its contents, as a last resort where they were published, least recently held first.

    Pages are handed out in no particular order: results do not depend on which page holds what.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._blank = list(range(count - 1, -1, -1))
        self._holders = [0] * count
        self._by_key: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Pages that can be taken."""
        return len(self._blank) + len(self._kept)

    @property
    def kept(self) -> int:
        """Pages that nobody holds and that have published contents."""
        return len(self._kept)

    def take(self, count: int) -> list[int]:
        """`count` pages to fill; the caller has checked `free`."""
        pages = [self._blank.pop() if self._blank else self._forget() for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

    def hold(self, pages: Iterable[int]) -> None:
        """One more holder of pages found by `find`, which must not be written from now on."""
        for page in pages:
            self._holders[page] += 1
            self._kept.pop(page, None)

    def release(self, pages: Sequence[int]) -> None:
        """One holder fewer. pages: in the order of their sequence: a page is no use without those before it,
        so the last is the first to be forgotten."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._key_of:
                self._kept[page] = None
            else:
                self._blank.append(page)

    def publish(self, page: int, key: bytes) -> None:
        """The page is full, and `key` says with what. Of two pages of equal contents the first is found."""
        if key not in self._by_key:
            self._by_key[key] = page
            self._key_of[page] = key

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The pages of the first keys, as many as are there without a gap."""
        pages = []
        for key in keys:
            page = self._by_key.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def idle(self, pages: Iterable[int]) -> int:
        """How many of them nobody holds."""
        return sum(not self._holders[page] for page in pages)

    def sole(self, pages: Iterable[int]) -> int:
        """How many of them have one holder."""
        return sum(self._holders[page] == 1 for page in pages)

    def _forget(self) -> int:
        page, _ = self._kept.popitem(last=False)
        del self._by_key[self._key_of.pop(page)]
        return page
