"""Keys of KV pages: equal for equal beginnings, different for everything that could make other bits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.router.prefix import extend_keys, root_key

ROOT = ("digest", "exact", "bf16", "")
TOKENS = st.lists(st.integers(0, 3), max_size=40)


def keys_of(tokens: list[int], page: int = 4, root: bytes = root_key(*ROOT)) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, root, tokens, page)
    return keys


@given(TOKENS, TOKENS)
def test_keys_agree_exactly_as_far_as_the_full_pages_do(one: list[int], other: list[int]) -> None:
    for page, (left, right) in enumerate(zip(keys_of(one), keys_of(other), strict=False)):
        end = 4 * (page + 1)
        assert (left == right) == (one[:end] == other[:end])
    assert len(keys_of(one)) == len(one) // 4


@given(TOKENS, st.integers(0, 40))
def test_keys_grow_with_the_sequence(tokens: list[int], cut: int) -> None:
    keys: list[bytes] = []
    extend_keys(keys, root_key(*ROOT), tokens[:cut], 4)
    extend_keys(keys, root_key(*ROOT), tokens, 4)
    assert keys == keys_of(tokens)


def test_whatever_changes_bits_or_must_not_be_shared_changes_the_key() -> None:
    roots = {root_key(*ROOT)}
    for place, value in enumerate(("other", "skip", "int8", "tenant")):
        fields = list(ROOT)
        fields[place] = value
        roots.add(root_key(*fields))
    assert len(roots) == 5
    assert root_key("a", "bc", "d", "") != root_key("ab", "c", "d", "")
