"""The paged KV cache: fixed memory, handed out in pages of tokens."""

from __future__ import annotations

import numpy as np
import psutil

from cluster.config import EngineConfig
from cluster.errors import OutOfMemoryBudget
from cluster.model.spec import ModelSpec
from cluster.router.pages import PagePool

PAGE_MULTIPLE = 16
"""Tokens of a page are a multiple of this: K is stored in columns of 16 tokens."""

SCALE_BYTES = 4
"""int8 pages have a float32 scale for every token and head, of K and of V."""


def page_bytes(spec: ModelSpec, page_tokens: int, dtype: type[np.generic]) -> int:
    """Bytes of one page over all layers, K and V with their scales; dtype: `kv_dtype` of the trunk."""
    head = spec.padded_head * np.dtype(dtype).itemsize + (SCALE_BYTES if dtype is np.int8 else 0)
    return 2 * spec.layers * spec.kv_heads * page_tokens * head


def longest_sequence(spec: ModelSpec, config: EngineConfig, dtype: type[np.generic]) -> int:
    """Tokens that a sequence may have: the model's context, the configured one, what the KV budget holds.

    dtype: `kv_dtype` of the trunk.
    """
    pages = config.kv_bytes // page_bytes(spec, config.page_tokens, dtype)
    return min(config.context or spec.context, spec.context, pages * config.page_tokens)


class KvCache:
    """K and V of every layer in pages.

    keys:   [layers, pages, kv_heads, page_tokens / 16, padded_head, 16] of `kv_dtype`
    values: [layers, pages, kv_heads, page_tokens, padded_head]
    key_scales, value_scales: [layers, pages, kv_heads, page_tokens] float32, None unless pages are int8

    pool: which pages are free. A released page keeps its stale contents; attention never reads a slot that
    was not written.
    """

    def __init__(self, spec: ModelSpec, page_tokens: int, budget_bytes: int, dtype: type[np.generic]) -> None:
        """Raises OutOfMemoryBudget when the budget holds no page or the machine lacks the memory."""
        if page_tokens < PAGE_MULTIPLE or page_tokens % PAGE_MULTIPLE:
            raise ValueError(f"page_tokens must be a multiple of {PAGE_MULTIPLE}, not {page_tokens}")
        one = page_bytes(spec, page_tokens, dtype)
        self.pages = budget_bytes // one
        if self.pages < 1:
            raise OutOfMemoryBudget(
                f"the KV budget of {budget_bytes} bytes holds no page of {page_tokens} tokens; "
                f"give at least {one} bytes (--kv-memory)"
            )
        free = psutil.virtual_memory().available
        if self.pages * one > free:
            raise OutOfMemoryBudget(
                f"no memory for the KV budget: {self.pages * one} bytes asked, {free} available; "
                f"lower it (--kv-memory)"
            )
        self.page_tokens = page_tokens
        head, columns = spec.padded_head, page_tokens // PAGE_MULTIPLE
        shape = (spec.layers, self.pages, spec.kv_heads)
        self.keys = np.zeros((*shape, columns, head, PAGE_MULTIPLE), dtype)
        self.values = np.zeros((*shape, page_tokens, head), dtype)
        scaled = dtype is np.int8
        self.key_scales = np.zeros((*shape, page_tokens), np.float32) if scaled else None
        self.value_scales = np.zeros((*shape, page_tokens), np.float32) if scaled else None
        self.pool = PagePool(self.pages)

    @property
    def free_pages(self) -> int:
        return self.pool.free

    @property
    def used_pages(self) -> int:
        """Pages that sequences hold."""
        return self.pages - self.pool.free

    def pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_tokens)

    def take(self, count: int) -> list[int]:
        """`count` pages; the caller has checked `free_pages`."""
        return self.pool.take(count)

    def release(self, pages: list[int]) -> None:
        """pages: in the order of their sequence."""
        self.pool.release(pages)
