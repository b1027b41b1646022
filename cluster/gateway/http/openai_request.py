"""What a body of OpenAI's dialect asks for, in our words. Pure.

Defaults are the dialect's where they differ from ours: temperature 1, 16 tokens of a completion, as many as
fit of a chat. Keys of ours beyond the dialect: top_k, min_p, repetition_penalty, stop_token_ids, ignore_eos,
priority, tier, request_id. What would change the answer and is not offered is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import InvalidRequest, Unsupported
from cluster.gateway.admission import Wishes
from cluster.gateway.http.body import (
    Fields,
    flag,
    integer,
    integers,
    listed,
    nested,
    number,
    string,
    strings,
)
from cluster.model.template import Message
from cluster.types import SEEDS, Grammar

TEMPERATURE = 1.0
COMPLETION_TOKENS = 16
AS_MANY_AS_FIT = 2**31 - 1
"""Admission shortens it to the room in the context."""

MOST_PROMPTS = 64

Prompt = str | tuple[int, ...]

_WISHES: Mapping[str, Callable[[str, Any], Any]] = {
    "temperature": number,
    "top_p": number,
    "top_k": integer,
    "min_p": number,
    "repetition_penalty": number,
    "presence_penalty": number,
    "frequency_penalty": number,
    "n": integer,
    "stop": strings,
    "stop_token_ids": integers,
    "ignore_eos": flag,
    "priority": integer,
}
_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("parallel_tool_calls", "prompt_cache_retention"),
)
_NOT_OFFERED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none",),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "audio": (),
    "suffix": ("",),
    "echo": (False,),
    "best_of": (1,),
    "reasoning_effort": (),
    "prediction": (),
    "web_search_options": (),
    "verbosity": (),
}
"""Key: the values with which it asks for nothing."""


@dataclass(frozen=True)
class TextAsked:
    """A completion or a chat. prompts: of a completion; messages: of a chat, then prompts is empty.

    logprobs: whether they are to be returned; include_usage: a last chunk with the tokens counted.
    """

    model: str
    prompts: tuple[Prompt, ...]
    messages: tuple[Message, ...]
    wishes: Wishes
    stream: bool
    include_usage: bool
    logprobs: bool
    tier: str
    request_id: str


@dataclass(frozen=True)
class EmbedAsked:
    model: str
    prompts: tuple[Prompt, ...]
    base64: bool


def read_completion(fields: Fields) -> TextAsked:
    """Raises InvalidRequest or Unsupported, naming the key."""
    prompts = fields.require("prompt", _prompts)
    alternatives = fields.take("logprobs", integer)
    most = fields.take("max_tokens", integer)
    wishes = _wishes(fields, alternatives or 0, COMPLETION_TOKENS if most is None else most)
    return _finish(fields, prompts, (), wishes, alternatives is not None)


def read_chat(fields: Fields) -> TextAsked:
    """Raises InvalidRequest or Unsupported, naming the key."""
    messages = tuple(_message(item, place) for place, item in enumerate(fields.require("messages", listed)))
    logprobs = fields.take("logprobs", flag) or False
    alternatives = fields.take("top_logprobs", integer) or 0
    if alternatives and not logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true")
    old = fields.take("max_tokens", integer)
    new = fields.take("max_completion_tokens", integer)
    most = old if new is None else new
    wishes = _wishes(fields, alternatives, AS_MANY_AS_FIT if most is None else most)
    return _finish(fields, (), messages, wishes, logprobs)


def read_embeddings(fields: Fields) -> EmbedAsked:
    """Raises InvalidRequest or Unsupported, naming the key."""
    model = fields.take("model", string) or ""
    prompts = fields.require("input", _prompts)
    form = fields.take("encoding_format", string) or "float"
    if form not in ("float", "base64"):
        raise InvalidRequest(f"encoding_format is {form!r}; it must be float or base64")
    if fields.take("dimensions", integer) is not None:
        raise Unsupported("dimensions is not offered: embeddings have the model's hidden size")
    fields.ignore(*_IGNORED)
    fields.finish()
    return EmbedAsked(model, prompts, form == "base64")


def _finish(
    fields: Fields, prompts: tuple[Prompt, ...], messages: tuple[Message, ...], wishes: Wishes, logprobs: bool
) -> TextAsked:
    stream = fields.take("stream", flag) or False
    asked = TextAsked(
        fields.take("model", string) or "",
        prompts,
        messages,
        wishes,
        stream,
        _include_usage(fields, stream),
        logprobs,
        fields.take("tier", string) or "",
        fields.take("request_id", string) or "",
    )
    fields.ignore(*_IGNORED)
    for name, harmless in _NOT_OFFERED.items():
        value = fields.take(name, lambda _, value: (value,))
        if value is not None and value[0] not in harmless:
            raise Unsupported(f"{name} is not offered by this server; leave it out")
    fields.finish()
    return asked


def _include_usage(fields: Fields, stream: bool) -> bool:
    options = fields.take("stream_options", nested)
    if options is None:
        return False
    if not stream:
        raise InvalidRequest("stream_options needs stream to be true")
    usage = options.take("include_usage", flag) or False
    options.ignore("include_obfuscation")
    options.finish()
    return usage


def _wishes(fields: Fields, alternatives: int, max_tokens: int) -> Wishes:
    taken = {name: fields.take(name, read) for name, read in _WISHES.items()}
    given: dict[str, Any] = {name: value for name, value in taken.items() if value is not None}
    given.setdefault("temperature", TEMPERATURE)
    seed = fields.take("seed", integer)
    return Wishes(
        max_tokens=max_tokens,
        seed=None if seed is None else seed % SEEDS,  # the dialect has negative ones too
        top_logprobs=alternatives,
        grammar=fields.take("response_format", _grammar),
        **given,
    )


def _grammar(name: str, value: Any) -> Grammar | None:
    form = nested(name, value)
    kind = form.require("type", string)
    if kind == "text":
        grammar = None
    elif kind == "json_object":
        grammar = Grammar("json_schema", '{"type":"object"}')
    elif kind == "json_schema":
        schema = form.require("json_schema", nested)
        body = schema.require("schema", lambda _, each: each)
        schema.ignore("name", "description", "strict")
        schema.finish()
        grammar = Grammar("json_schema", _dumps(body))
    else:
        raise InvalidRequest(f"{name}.type is {kind!r}; it must be text, json_object or json_schema")
    form.finish()
    return grammar


def _dumps(schema: Any) -> str:
    try:
        return json.dumps(schema)
    except RecursionError:
        raise InvalidRequest("the schema is nested too deeply") from None


def _prompts(name: str, value: Any) -> tuple[Prompt, ...]:
    """A string, a list of strings, token ids, or a list of lists of token ids."""
    if isinstance(value, str):
        return (string(name, value),)
    items = listed(name, value)
    if not items:
        raise InvalidRequest(f"{name} is empty")
    if isinstance(items[0], int):
        return (integers(name, items),)
    if len(items) > MOST_PROMPTS:
        raise InvalidRequest(f"{name} has {len(items)} prompts; send at most {MOST_PROMPTS} at once")
    if isinstance(items[0], list):
        return tuple(integers(f"{name}[{place}]", item) for place, item in enumerate(items))
    return strings(name, items)


def _message(value: Any, place: int) -> Message:
    where = f"messages[{place}]"
    message = nested(where, value)
    role = message.require("role", string)
    content = message.take("content", _content)
    message.ignore("name", "refusal", "annotations", "reasoning_content")
    message.finish()
    if content is None:
        raise InvalidRequest(f"{where}.content is missing")
    # The dialect's newer word for the instructions in front; templates know the older one.
    return {"role": "system" if role == "developer" else role, "content": content}


def _content(name: str, value: Any) -> str:
    """A string, or a list of parts of which only text is understood."""
    if isinstance(value, str):
        return string(name, value)
    texts = []
    for place, item in enumerate(listed(name, value)):
        part = nested(f"{name}[{place}]", item)
        kind = part.require("type", string)
        if kind != "text":
            raise Unsupported(f"{name}[{place}] is of type {kind!r}; only text is understood")
        texts.append(part.require("text", string))
    return "".join(texts)
