"""Chat templates: what published ones use, in a sandbox, with errors a client understands."""

from __future__ import annotations

import json
from datetime import datetime

import pytest

from cluster.errors import BrokenCheckpoint, InvalidRequest
from cluster.model.template import ChatTemplate, render_chat

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}"""

MIXTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}{% endfor %}"
)

HELLO = [{"role": "user", "content": "hello"}]
TALK = [*HELLO, {"role": "assistant", "content": "hi"}, {"role": "user", "content": "bye"}]


def from_config(**values: object) -> ChatTemplate | None:
    return ChatTemplate.from_files(json.dumps(values).encode())


def rendered(source: str, **variables: object) -> str:
    return ChatTemplate(source).render(HELLO, variables=variables)


def test_chatml() -> None:
    template = ChatTemplate(CHATML)
    assert template.render(HELLO) == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert template.render(HELLO, add_generation_prompt=False) == "<|im_start|>user\nhello<|im_end|>\n"


def test_mixtral_with_special_tokens_in_both_spellings() -> None:
    template = from_config(
        chat_template=MIXTRAL, bos_token={"content": "<s>", "lstrip": False}, eos_token="</s>"
    )
    assert template is not None
    assert template.render(TALK) == "<s>[INST] hello [/INST]hi</s>[INST] bye [/INST]"


def test_the_templates_own_refusal_reaches_the_client() -> None:
    template = from_config(chat_template=MIXTRAL, bos_token="<s>", eos_token="</s>")
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        render_chat(template, [*HELLO, *HELLO])


def test_where_a_template_comes_from() -> None:
    config = json.dumps({"chat_template": "config"}).encode()
    assert ChatTemplate.from_files(None) is None
    assert from_config(bos_token="<s>") is None
    assert ChatTemplate.from_files(config) == ChatTemplate("config")
    assert ChatTemplate.from_files(config, b"jinja") == ChatTemplate("jinja")
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "chat"}]
    assert from_config(chat_template=named) == ChatTemplate("chat")
    with_map = ChatTemplate.from_files(config, None, b'{"eos_token": {"content": "</s>"}}')
    assert with_map == ChatTemplate("config", {"eos_token": "</s>"})


def test_no_template_says_so() -> None:
    with pytest.raises(InvalidRequest, match="no chat template; send a plain prompt"):
        render_chat(None, HELLO)


def test_packed_and_back() -> None:
    template = ChatTemplate(CHATML + "é", {"eos_token": "</s>", "bos_token": "<s>"})
    assert ChatTemplate.from_bytes(template.to_bytes()) == template
    reordered = ChatTemplate(CHATML + "é", {"bos_token": "<s>", "eos_token": "</s>"})
    assert reordered.to_bytes() == template.to_bytes()


def test_the_environment_is_that_of_transformers() -> None:
    assert rendered("  {% if true %}\nx\n  {% endif %}\n") == "x\n"  # trim_blocks, lstrip_blocks
    assert rendered("{{ {'a': '<é>'} | tojson }}") == '{"a": "<é>"}'
    assert rendered("{{ {'a': 1} | tojson(indent=1) }}") == '{\n "a": 1\n}'
    assert rendered("{% for x in [1, 2, 3] %}{% if x == 2 %}{% break %}{% endif %}{{ x }}{% endfor %}") == "1"
    assert rendered("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "hello"
    assert rendered("{{ enable_thinking }}{{ tools is none }}", enable_thinking=False) == "FalseTrue"
    clock = ChatTemplate("{{ strftime_now('%Y-%m-%d') }}")
    assert clock.render(HELLO, now=lambda: datetime(2024, 2, 29)) == "2024-02-29"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['os'] }}",
        "{% for i in range(10000000) %}{% endfor %}",
        "{{ messages[0].content + 1 }}",
        "{{ 1 // 0 }}",
    ],
)
def test_the_sandbox_holds_and_failures_are_the_requests(source: str) -> None:
    with pytest.raises(InvalidRequest, match="refuses these messages"):
        rendered(source)


@pytest.mark.parametrize("messages", [[], [{}], [{"content": "no role"}], ["text"], [{"role": 1}]])
def test_malformed_messages(messages: list[object]) -> None:
    with pytest.raises(InvalidRequest, match=r"no messages|every message needs"):
        ChatTemplate(CHATML).render(messages)  # type: ignore[arg-type]


def test_a_broken_template_is_found_when_it_is_loaded() -> None:
    with pytest.raises(BrokenCheckpoint, match=r"does not parse \(line 2\)"):
        from_config(chat_template="\n{% if %}")
    with pytest.raises(BrokenCheckpoint, match=r"tokenizer_config\.json"):
        ChatTemplate.from_files(b"[]")
    with pytest.raises(BrokenCheckpoint, match=r"chat_template\.jinja is not UTF-8"):
        ChatTemplate.from_files(None, jinja=b"\xff")
