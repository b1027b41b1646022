"""Grammars as masks: whatever is chosen among the allowed tokens, the output matches."""

from __future__ import annotations

import json
import random
import re
import threading
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLParserLimits

from cluster.errors import InvalidRequest
from cluster.library.bundled import open_model
from cluster.library.grammars import grammars_of
from cluster.model import grammar
from cluster.model.grammar import Grammars, GrammarState
from cluster.model.tokenizer import Tokenizer
from cluster.types import Grammar
from support.gateways import byte_tokenizer

MOST_TOKENS = 400


@cache
def bundled() -> tuple[Grammars, Tokenizer]:
    library = open_model()
    grammars = grammars_of(library)
    assert grammars is not None
    return grammars, library.tokenizer()


def allowed(state: GrammarState, words: int) -> np.ndarray:
    masks = np.zeros((1, words), np.int32)
    state.allowed(masks, 0)
    return np.flatnonzero(np.unpackbits(masks.view(np.uint8), bitorder="little"))


def walk(wanted: Grammar, seed: int) -> str:
    """Text of a random walk among the allowed tokens."""
    grammars, tokenizer = bundled()
    state, draws, ids = grammars.compile(wanted), random.Random(seed), []
    while not state.complete:
        ids.append(int(draws.choice(allowed(state, grammars.words))))
        state.advance(ids[-1])
        assert not state.error
        assert len(ids) < MOST_TOKENS
    return tokenizer.decode(ids)


names = st.sampled_from(["a", "name", "x y", "ü"])
scalars: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "null"}),
    st.just({"type": "boolean"}),
    st.tuples(st.integers(-50, 50), st.integers(0, 500)).map(
        lambda pair: {"type": "integer", "minimum": pair[0], "maximum": pair[0] + pair[1]}
    ),
    st.integers(0, 6).map(lambda most: {"type": "string", "maxLength": most}),
    st.just({"type": "string", "pattern": "^[a-c]{2,4}$"}),
    st.lists(st.sampled_from(["é", "b", 3, None, True]), min_size=1, max_size=3, unique_by=repr).map(
        lambda values: {"enum": values}
    ),
)


def nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    arrays = st.tuples(inner, st.integers(0, 3)).map(
        lambda pair: {"type": "array", "items": pair[0], "maxItems": pair[1]}
    )
    objects = st.dictionaries(names, inner, max_size=3).flatmap(
        lambda found: st.sets(st.sampled_from(sorted(found)) if found else st.nothing()).map(
            lambda required: {
                "type": "object",
                "properties": found,
                "required": sorted(required),
                "additionalProperties": False,
            }
        )
    )
    return arrays | objects | st.lists(inner, min_size=1, max_size=2).map(lambda some: {"anyOf": some})


@settings(max_examples=60)
@given(st.recursive(scalars, nested, max_leaves=5), st.integers(0, 1 << 30))
def test_every_output_is_valid_under_its_schema(schema: dict[str, Any], seed: int) -> None:
    text = walk(Grammar("json_schema", json.dumps(schema)), seed)
    jsonschema.validate(json.loads(text), schema)


@pytest.mark.parametrize("seed", range(5))
def test_every_output_matches_its_regex(seed: int) -> None:
    pattern = r"(cat|dog)s?: [0-9]{1,3}(\.[0-9]{2})?!"
    assert re.fullmatch(pattern, walk(Grammar("regex", pattern), seed))


@pytest.mark.parametrize("text", ['{"a":1}', '{"a": 1}', '{\n  "a": 1\n}'])
def test_json_may_be_written_in_the_usual_ways(text: str) -> None:
    grammars, tokenizer = bundled()
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}, "required": ["a"]}
    state = grammars.compile(Grammar("json_schema", json.dumps({**schema, "additionalProperties": False})))
    for token in tokenizer.encode(text, add_special_tokens=False):
        assert token in allowed(state, grammars.words)
        state.advance(token)
    assert state.complete


def test_blanks_are_bounded() -> None:
    grammars, tokenizer = bundled()
    state = grammars.compile(Grammar("json_schema", '{"type": "array", "maxItems": 1}'))
    for token in tokenizer.encode("[" + " " * 2, add_special_tokens=False):
        state.advance(token)
    assert state.error


def test_states_of_one_grammar_are_independent() -> None:
    grammars, tokenizer = bundled()
    first = grammars.compile(Grammar("regex", "ab"))
    second = grammars.compile(Grammar("regex", "ab"))
    for token in tokenizer.encode("ab", add_special_tokens=False):
        first.advance(token)
    assert first.complete
    assert not second.complete


def test_a_token_that_is_not_allowed_is_an_error_and_stays_one() -> None:
    grammars, tokenizer = bundled()
    state = grammars.compile(Grammar("regex", "ab"))
    state.advance(tokenizer.encode("z", add_special_tokens=False)[0])
    assert state.error
    assert not state.complete


def test_what_other_sequences_met_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lexer has a bound of states: every sequence has a lexer, and so the bound, to itself."""
    monkeypatch.setattr(grammar, "LIMITS", LLParserLimits(max_lexer_states=200, verbose_errors=False))
    schema = {"type": "string", "maxLength": 40}
    for seed in range(40):
        json.loads(walk(Grammar("json_schema", json.dumps(schema)), seed))


def test_threads_may_compile_at_once() -> None:
    grammars, _ = bundled()
    states: list[GrammarState] = []
    work = [
        threading.Thread(target=lambda n=n: states.append(grammars.compile(Grammar("regex", f"x{n % 3}"))))
        for n in range(12)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(states) == 12


def test_a_tokenizer_without_an_end_of_sequence_is_enough() -> None:
    """A complete output ends by itself; only one that may go on has no end but max_tokens."""
    tokenizer = byte_tokenizer()
    grammars = Grammars(tokenizer, 256, ())
    state = grammars.compile(Grammar("regex", "a+b"))
    for token in tokenizer.encode("aab"):
        assert token in allowed(state, grammars.words)
        state.advance(token)
    assert state.complete


def test_rows_of_a_padded_vocabulary_are_never_allowed() -> None:
    grammars = Grammars(byte_tokenizer(), 300, ())
    assert grammars.words == 10
    found = allowed(grammars.compile(Grammar("regex", "(?s:.)*")), grammars.words)
    assert len(found) > 100
    assert found.max() < 256


@pytest.mark.parametrize("text", ["", "x" * (64 << 10) + "y", "\ud800"])
def test_a_grammars_text_has_bounds(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"grammar\.text"):
        Grammar("regex", text)


def test_kinds_are_known() -> None:
    with pytest.raises(InvalidRequest, match="json_schema or regex or lark"):
        Grammar("gbnf", "a")  # type: ignore[arg-type]
