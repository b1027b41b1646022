"""Bodies of OpenAI's dialect, read without a server: any JSON gives a request or one of our errors."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest, MoemeshError, Unsupported
from cluster.gateway.http.body import Fields
from cluster.gateway.http.openai_request import (
    AS_MANY_AS_FIT,
    read_chat,
    read_completion,
    read_embeddings,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from(
    [
        *(
            "model",
            "prompt",
            "messages",
            "input",
            "max_tokens",
            "max_completion_tokens",
            "temperature",
            "top_p",
        ),
        *(
            "n",
            "stop",
            "seed",
            "stream",
            "stream_options",
            "logprobs",
            "top_logprobs",
            "response_format",
            "tools",
        ),
        *(
            "logit_bias",
            "stop_token_ids",
            "priority",
            "tier",
            "request_id",
            "user",
            "echo",
            "encoding_format",
        ),
    ]
)
MESSAGE = {"role": "user", "content": "hi"}


@given(body=st.dictionaries(KEYS | st.text(max_size=5), JSON, max_size=6))
def test_any_object_is_read_or_refused(body: dict[str, Any]) -> None:
    for read, least in (
        (read_completion, {"prompt": "abc"}),
        (read_chat, {"messages": [MESSAGE]}),
        (read_embeddings, {"input": "abc"}),
    ):
        for given_body in (body, {**least, **body}):
            with contextlib.suppress(MoemeshError):
                read(Fields(given_body))


@given(message=JSON | st.fixed_dictionaries({"role": JSON, "content": JSON}))
def test_any_message_is_read_or_refused(message: Any) -> None:
    try:
        asked = read_chat(Fields({"messages": [message]}))
    except MoemeshError:
        return
    assert isinstance(asked.messages[0]["content"], str)


def chat(**fields: Any) -> Any:
    return read_chat(Fields({"messages": [MESSAGE], **fields}))


def test_the_newer_name_of_max_tokens_goes_first() -> None:
    assert chat(max_tokens=3, max_completion_tokens=4).wishes.max_tokens == 4
    assert chat(max_tokens=3).wishes.max_tokens == 3
    assert chat().wishes.max_tokens == AS_MANY_AS_FIT


def test_null_is_absent() -> None:
    names = ("temperature", "stop", "seed", "stream", "tools", "response_format")
    assert chat(**dict.fromkeys(names)) == chat()


def test_roles_and_parts_become_what_templates_know() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    asked = read_chat(Fields({"messages": [{"role": "developer", "content": parts}]}))
    assert asked.messages == ({"role": "system", "content": "ab"},)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"tools": [{}]}, Unsupported),
        ({"tool_choice": "required"}, Unsupported),
        ({"top_logprobs": 3}, InvalidRequest),
        ({"messages": [{"role": "user"}]}, InvalidRequest),
        ({"messages": [MESSAGE | {"tool_calls": []}]}, InvalidRequest),
        ({"response_format": {"type": "json_schema"}}, InvalidRequest),
    ],
)
def test_what_would_change_the_answer_is_not_ignored(fields: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        chat(**fields)
    assert chat(tools=[], tool_choice="auto", user="me", store=True) == chat()
