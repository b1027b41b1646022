"""The page pool: nothing is handed out twice, shared pages outlive a holder, contents go oldest first."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from cluster.router.pages import PagePool

COUNT = 6


def key(number: int) -> bytes:
    return number.to_bytes(2, "little")


class Pools(RuleBasedStateMachine):
    """Against the plain bookkeeping of who holds what."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(COUNT)
        self.holders: list[list[int]] = []
        self.contents: dict[int, bytes] = {}
        self.number = 0

    @rule(target=taken, count=st.integers(1, COUNT), publish=st.integers(0, COUNT))
    def take(self, count: int, publish: int) -> object:
        if count > self.pool.free:
            return multiple()
        pages = self.pool.take(count)
        held = {page for holder in self.holders for page in holder}
        assert len(set(pages)) == count
        assert not held & set(pages), "a page in use was handed out"
        for page in pages:
            self.contents.pop(page, None)
        for page in pages[:publish]:
            self.number += 1
            self.contents[page] = key(self.number)
            self.pool.publish(page, key(self.number))
        self.holders.append(pages)
        return pages

    @rule(target=taken, number=st.integers(1, 200))
    def share(self, number: int) -> object:
        found = self.pool.find([key(number)])
        expected = [page for page, name in self.contents.items() if name == key(number)]
        assert found == expected, "what is published is found until its page is taken again"
        if not found:
            return multiple()
        assert self.pool.idle(found) == (not any(found[0] in holder for holder in self.holders))
        self.pool.hold(found)
        self.holders.append(found)
        return found

    @rule(pages=consumes(taken))
    def release(self, pages: list[int]) -> None:
        alone = sum(sum(page in holder for holder in self.holders) == 1 for page in pages)
        before = self.pool.free
        assert self.pool.sole(pages) == alone
        self.holders.remove(pages)
        self.pool.release(pages)
        assert self.pool.free == before + alone

    @invariant()
    def counts(self) -> None:
        held = {page for holder in self.holders for page in holder}
        assert self.pool.free == COUNT - len(held)
        assert self.pool.kept == len(self.contents.keys() - held)


TestPools = Pools.TestCase


def test_the_end_of_the_least_recent_sequence_is_forgotten_first() -> None:
    pool = PagePool(4)
    old, new = pool.take(2), pool.take(2)
    for page in (*old, *new):
        pool.publish(page, key(page))
    pool.release(old)
    pool.release(new)
    pool.take(1)
    assert pool.find([key(page) for page in old]) == old[:1]
    assert pool.find([key(page) for page in new]) == new
    pool.take(1)
    assert pool.find([key(old[0])]) == []
    assert pool.find([key(page) for page in new]) == new


def test_the_first_of_two_equal_pages_is_found_and_the_other_is_not_kept() -> None:
    pool = PagePool(2)
    first, second = pool.take(1), pool.take(1)
    pool.publish(first[0], key(1))
    pool.publish(second[0], key(1))
    pool.release(second)
    assert pool.kept == 0
    assert pool.find([key(1), key(2)]) == first
