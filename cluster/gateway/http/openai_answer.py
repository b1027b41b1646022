"""Answers in OpenAI's dialect: whole ones and chunks, of completions and of chats. Pure."""

from __future__ import annotations

import abc
import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.gateway.run import Delta, Outcome
from cluster.model.tokenizer import Decoder, Tokenizer
from cluster.types import Alternatives

OWNER = "moemesh"
REASONS = {"stop": "stop", "length": "length", "aborted": "stop"}
"""The dialect has no word for an abort by request id."""

Answer = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """What all parts of one answer share. created: seconds since 1970."""

    id: str
    created: int
    model: str

    def of(self, kind: str, choices: list[Answer], usage: Answer | None = None) -> Answer:
        answer = {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }
        return answer if usage is None else {**answer, "usage": usage}


@dataclass
class Usage:
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, outcome: Outcome) -> None:
        self.completion_tokens += outcome.completion_tokens

    def to_answer(self) -> Answer:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


@dataclass
class Whole:
    """One choice, gathered."""

    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    outcome: Outcome | None = None

    def add(self, delta: Delta) -> None:
        self.text.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.alternatives += delta.alternatives
        self.outcome = delta.outcome

    def to_delta(self) -> Delta:
        text = "".join(self.text)
        return Delta(text, self.token_ids, self.logprobs, self.outcome, self.alternatives)


class Dialect(abc.ABC):
    """How completions and chats differ. tokenizer: None returns no log-probabilities."""

    whole: str
    chunk: str
    prefix: str
    partial: str
    """What stands before the escaped bytes of a token that is no whole characters."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self._tokenizer = tokenizer

    @abc.abstractmethod
    def choice(self, index: int, delta: Delta) -> Answer:
        """A whole choice."""

    @abc.abstractmethod
    def opening(self, index: int) -> Answer | None:
        """The choice of a first chunk, None where there is none without text."""

    @abc.abstractmethod
    def part(self, index: int, delta: Delta) -> Answer:
        """The choice of a later chunk."""

    def _entries(self, delta: Delta) -> list[Answer]:
        """One a token: {"token", "logprob", "bytes", "top_logprobs"}."""
        alternatives = delta.alternatives or [()] * len(delta.token_ids)
        return [
            {
                **self._entry(token, logprob),
                "top_logprobs": [self._entry(*each) for each in others],
            }
            for token, logprob, others in zip(delta.token_ids, delta.logprobs, alternatives, strict=True)
        ]

    def _entry(self, token: int, logprob: float) -> Answer:
        assert self._tokenizer is not None
        spelled = self._tokenizer.bytes_of(token)
        return {"token": self._text(spelled), "logprob": logprob, "bytes": list(spelled)}

    def _text(self, spelled: bytes) -> str:
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return self.partial + "".join(f"\\x{byte:02x}" for byte in spelled)


@dataclass
class _Place:
    """How far the text of one choice has come. Decoded again: a delta does not tell which of its tokens made
    which characters, and its text is held back where it may begin a stop string."""

    decoder: Decoder
    characters: int = 0

    def before(self, token: int) -> int:
        """Whole characters before this one, the next of the choice."""
        before = self.characters
        self.characters += len(self.decoder.push(token))
        return before


class Completions(Dialect):
    whole = chunk = "text_completion"
    prefix = "cmpl-"
    partial = "bytes:"

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        super().__init__(tokenizer)
        self._places: dict[int, _Place] = {}

    def choice(self, index: int, delta: Delta) -> Answer:
        return self.part(index, delta)

    def opening(self, index: int) -> Answer | None:
        return None

    def part(self, index: int, delta: Delta) -> Answer:
        return {
            "index": index,
            "text": delta.text,
            "logprobs": None if self._tokenizer is None else self._columns(index, delta, self._tokenizer),
            "finish_reason": _reason(delta),
        }

    def _columns(self, index: int, delta: Delta, tokenizer: Tokenizer) -> Answer:
        entries = self._entries(delta)
        place = self._places.setdefault(index, _Place(tokenizer.stream()))
        return {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [
                {each["token"]: each["logprob"] for each in entry["top_logprobs"]} for entry in entries
            ],
            "text_offset": [place.before(token) for token in delta.token_ids],
        }


class Chats(Dialect):
    whole = "chat.completion"
    chunk = "chat.completion.chunk"
    prefix = "chatcmpl-"
    partial = ""

    def choice(self, index: int, delta: Delta) -> Answer:
        message = {"role": "assistant", "content": delta.text, "refusal": None}
        return self._wrap(index, "message", message, delta)

    def opening(self, index: int) -> Answer | None:
        return self._wrap(index, "delta", {"role": "assistant", "content": ""}, Delta())

    def part(self, index: int, delta: Delta) -> Answer:
        return self._wrap(index, "delta", {"content": delta.text} if delta.text else {}, delta)

    def _wrap(self, index: int, name: str, value: Answer, delta: Delta) -> Answer:
        listed = self._tokenizer is not None and delta.token_ids
        return {
            "index": index,
            name: value,
            "logprobs": {"content": self._entries(delta), "refusal": None} if listed else None,
            "finish_reason": _reason(delta),
        }


def _reason(delta: Delta) -> str | None:
    return None if delta.outcome is None else REASONS[delta.outcome.reason]


def model(name: str, created: int) -> Answer:
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER}


def embeddings(name: str, rows: Sequence[np.ndarray], in_base64: bool, tokens: int) -> Answer:
    """rows: [hidden] float32 each."""
    return {
        "object": "list",
        "model": name,
        "data": [
            {"object": "embedding", "index": index, "embedding": _vector(row, in_base64)}
            for index, row in enumerate(rows)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _vector(row: np.ndarray, in_base64: bool) -> str | list[float]:
    if in_base64:
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    values: list[float] = row.tolist()
    return values
