"""One request while it lives in the engine, and the arrays a step is made of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from cluster.model.grammar import GrammarState
from cluster.types import Alternatives, EngineRequest, RequestId

AGEING = 256
"""Arrivals that a level of priority is worth: a request is overtaken by no later one of the next higher
priority once so many have arrived between them. So nothing waits for ever."""


@dataclass(eq=False)
class Sequence:
    """Mutable; owned by the engine. Two are equal only if they are the same one.

    number: order of arrival. tokens: prompt and generated ids, by this router or by one that was lost.
    computed: tokens whose K and V are stored. pages: KV pages it holds. slot: its row in the engine's page
    table, -1 while it waits.
    scores, alternatives: log-probabilities gathered so far ("score" requests); total: [hidden] float64, sum
    of the rows so far ("embed"). emitted: tokens given to the client. grammar: how far the output has come.
    sole: pages that nobody else holds; right while pages are short.
    found: pages of others that it could begin with, of which nobody holds `idle`; keys: of its full pages;
    published: tokens whose pages others can find (cluster/router/paging.py).
    """

    request: EngineRequest
    number: int
    tokens: list[int]
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    slot: int = -1
    scores: list[np.ndarray] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    total: np.ndarray | None = None
    emitted: int = 0
    grammar: GrammarState | None = None
    sole: int = 0
    found: list[int] = field(default_factory=list)
    idle: int = 0
    keys: list[bytes] = field(default_factory=list)
    published: int = 0

    @property
    def rank(self) -> int:
        """Place in every order of the engine, lower first: of two requests of one priority the older one,
        else the one of higher priority unless it came AGEING arrivals a level later."""
        return self.number - AGEING * self.request.priority

    @property
    def id(self) -> RequestId:
        return self.request.request_id

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def held(self) -> int:
        return len(self.pages)

    @property
    def shareable(self) -> int:
        return len(self.found)

    def restart(self) -> None:
        """Its KV pages are gone: all of its tokens are computed, and scored, once more. The grammar has seen
        the tokens, which stay."""
        self.computed = self.published = 0
        self.scores, self.alternatives, self.total = [], [], None

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_ids)


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one sequence in a step: tokens[begin : begin + count]."""

    sequence: Sequence
    begin: int
    count: int

    @property
    def completes(self) -> bool:
        """Whether the last row is the sequence's last token, so that its logits choose the next."""
        return self.begin + self.count == self.sequence.length


@dataclass(frozen=True)
class Batch:
    """Rows of one micro-batch, T in all.

    tokens: [T] int32; positions: [T] int64; slots: [T] int64, where K and V go (page * page_tokens +
    offset); sequence: [T] int64, row of the page table.
    """

    pieces: tuple[Piece, ...]
    tokens: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    sequence: np.ndarray


def build_batch(pieces: tuple[Piece, ...], page_table: np.ndarray, page_tokens: int) -> Batch:
    """page_table: [slots, pages] int32."""
    if all(piece.count == 1 for piece in pieces):  # a step of decode
        tokens = np.array([piece.sequence.tokens[piece.begin] for piece in pieces], np.int32)
        positions = np.array([piece.begin for piece in pieces], np.int64)
        sequence = np.array([piece.sequence.slot for piece in pieces], np.int64)
    else:
        tokens, positions, sequence = _rows_of(pieces)
    pages = page_table[sequence, positions // page_tokens].astype(np.int64)
    return Batch(pieces, tokens, positions, pages * page_tokens + positions % page_tokens, sequence)


def _rows_of(pieces: tuple[Piece, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, positions, sequence) of pieces of any length."""
    counts = [piece.count for piece in pieces]
    tokens = np.fromiter(
        (t for p in pieces for t in p.sequence.tokens[p.begin : p.begin + p.count]), np.int32, sum(counts)
    )
    begins = np.array([piece.begin for piece in pieces], np.int64)
    starts = np.cumsum([0, *counts[:-1]], dtype=np.int64)
    positions = np.arange(len(tokens), dtype=np.int64) + np.repeat(begins - starts, counts)
    sequence = np.repeat(np.array([piece.sequence.slot for piece in pieces], np.int64), counts)
    return tokens, positions, sequence
