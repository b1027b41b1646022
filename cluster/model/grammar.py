"""Grammars as masks over the vocabulary, by llguidance: which tokens may come next, when it is complete.

A mask is a function of the grammar and the tokens so far alone, so a sequence that is computed again, or on
another machine, is offered the same tokens.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence

import llguidance
import llguidance.numpy
import numpy as np

from cluster.errors import InvalidRequest
from cluster.model.tokenizer import Tokenizer
from cluster.types import Grammar

WHITESPACE = r"(\n[ ]{0,16}| )?"
"""Between the elements of JSON: nothing, a space, or a new line with its indentation. Without a bound a
model may write blanks until max_tokens."""

LIMITS = llguidance.LLParserLimits(max_lexer_states=5_000, verbose_errors=False)
"""A state costs 1 to 2 kB: no sequence's grammar takes more than some 10 MB. Ordinary ones need hundreds."""

MOST_MESSAGE = 300


class GrammarState:
    """How far one sequence has come in its grammar. Used by one thread at a time."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    @property
    def complete(self) -> bool:
        """The output matches and nothing can follow it."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    @property
    def error(self) -> str:
        """Why it can go no further, "" while it can: a grammar may turn out too complex on the way."""
        return _line(self._matcher.get_error()) if self._matcher.is_error() else ""

    def allowed(self, masks: np.ndarray, row: int) -> None:
        """masks[row] = the tokens that may come next, none of them where there is an `error`.

        masks: [rows, words] int32; token t is bit t % 32 of word t // 32.
        """
        llguidance.numpy.fill_next_token_bitmask(self._matcher, masks, row)

    def advance(self, token: int) -> None:
        """`token` was chosen; one that was not allowed is an `error`."""
        self._matcher.consume_token(token)


class Grammars:
    """Compiles grammars for one tokenizer. Safe to share between threads.

    vocab: width of the model's logits; eos_ids: ids that may end a complete output, the tokenizer's own if
    there are none. The first grammar has the tokenizer read: tens of milliseconds.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, eos_ids: Sequence[int]) -> None:
        self.words = -(-vocab // 32)
        self._text, self._vocab, self._eos_ids = tokenizer, vocab, list(eos_ids)
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._lock = threading.Lock()

    def compile(self, grammar: Grammar) -> GrammarState:
        """A state at the beginning, in about a millisecond. Raises InvalidRequest saying what is wrong.

        Nothing is kept from one sequence to the next: copies of a matcher share the states of its lexer, and
        with them its limit, so that a sequence could fail for what others had met.
        """
        matcher = llguidance.LLMatcher(self._read(), _source(grammar), log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise InvalidRequest(f"grammar ({grammar.kind}): {_line(matcher.get_error())}")
        return GrammarState(matcher)

    def _read(self) -> llguidance.LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                text, eos = self._text.to_json(), self._eos_ids or None
                self._tokenizer = llguidance.LLTokenizer(text, n_vocab=self._vocab, eos_token=eos)
            return self._tokenizer


def _source(grammar: Grammar) -> str:
    """In llguidance's own notation."""
    if grammar.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(grammar.text)
    if grammar.kind == "lark":
        return llguidance.LLMatcher.grammar_from_lark(grammar.text)
    try:
        schema = json.loads(grammar.text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"grammar (json_schema) is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise InvalidRequest("grammar (json_schema) must be a JSON object; {} allows any JSON")
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(
            grammar.text, defaults={"whitespace_flexible": True, "whitespace_pattern": WHITESPACE}
        )
    except ValueError as error:  # what Python reads and serde does not: deep nesting, half a surrogate
        raise InvalidRequest(f"grammar (json_schema): {_line(str(error))}") from None


def _line(message: str) -> str:
    """Errors are one line; llguidance's may have many."""
    return " ".join(message.split())[:MOST_MESSAGE]
