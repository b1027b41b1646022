"""Chat templates: jinja2 in its sandbox, with the environment that transformers gives them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster.errors import BrokenCheckpoint, InvalidRequest

Message = Mapping[str, Any]

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class ChatTemplate:
    """A model's template and the special tokens that it may name."""

    source: str
    special_tokens: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def from_files(
        tokenizer_config: bytes | None, jinja: bytes | None = None, special_tokens_map: bytes | None = None
    ) -> ChatTemplate | None:
        """From the bytes of tokenizer_config.json, chat_template.jinja (wins) and special_tokens_map.json.

        None if there is no template. Raises BrokenCheckpoint if a file or the template cannot be parsed.
        """
        config = _json_object(tokenizer_config, "tokenizer_config.json")
        tokens = {**_json_object(special_tokens_map, "special_tokens_map.json"), **config}
        source = _default_template(config.get("chat_template")) if jinja is None else _text(jinja)
        if source is None:
            return None
        named = {name: _token_text(tokens[name]) for name in SPECIAL_TOKENS if tokens.get(name)}
        return ChatTemplate(source, named)._checked()

    @staticmethod
    def from_bytes(data: bytes) -> ChatTemplate:
        """Inverse of `to_bytes`."""
        values = _json_object(data, "chat template")
        return ChatTemplate(values["source"], values["special_tokens"])._checked()

    def to_bytes(self) -> bytes:
        """For a packed library: JSON, the same bytes for the same template."""
        values = {"source": self.source, "special_tokens": dict(self.special_tokens)}
        return json.dumps(values, ensure_ascii=False, sort_keys=True).encode()

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> str:
        """The prompt for a conversation; encode it with add_special_tokens=False.

        messages: {"role": ..., "content": ...} and whatever else the template reads. variables: further
        values for it (`tools`, `enable_thinking`, ...). now: the clock behind `strftime_now`.
        Raises InvalidRequest for malformed messages and for what the template itself refuses.
        """
        _check_messages(messages)
        environment = _environment(now)
        values = {"tools": None, "documents": None, **self.special_tokens, **(variables or {})}
        values |= {"messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return environment.from_string(self.source).render(values)
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise InvalidRequest(f"the model's chat template refuses these messages: {error}") from error

    def _checked(self) -> ChatTemplate:
        try:
            _environment(datetime.now).parse(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise BrokenCheckpoint(
                f"the chat template does not parse (line {error.lineno}): {error}"
            ) from error
        return self


def render_chat(template: ChatTemplate | None, messages: Sequence[Message], **options: Any) -> str:
    """`ChatTemplate.render`, with an InvalidRequest for a model that has no template."""
    if template is None:
        raise InvalidRequest("this model has no chat template; send a plain prompt instead of messages")
    return template.render(messages, **options)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks an assistant's text for training; here it only prints."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it as an instance variable

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda layout: now().strftime(layout)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own escapes HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _check_messages(messages: Sequence[Any]) -> None:
    if not messages:
        raise InvalidRequest("the conversation has no messages")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequest('every message needs a "role", such as "user", and usually "content"')


def _default_template(value: Any) -> str | None:
    """tokenizer_config.json holds one template, or a list of named ones of which "default" is for chat."""
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value}.get("default")
    return value if isinstance(value, str) else None


def _text(jinja: bytes) -> str:
    try:
        return jinja.decode()
    except UnicodeDecodeError as error:
        raise BrokenCheckpoint(f"chat_template.jinja is not UTF-8 ({error}); download it again") from None


def _token_text(value: Any) -> str:
    return str(value["content"]) if isinstance(value, dict) else str(value)


def _json_object(data: bytes | None, name: str) -> dict[str, Any]:
    try:
        value = {} if data is None else json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise BrokenCheckpoint(f"{name} is not readable as JSON; download it again")
    return value
