"""OpenAI's dialect over real sockets; the stock SDK is in tests/clients."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest

from cluster.gateway.http.body import Fields
from cluster.gateway.http.openai_request import read_chat
from support.fake_router import FakeRouter, logprob
from support.http import GREEDY, chat, complete, events, text_of


def test_a_completion(client: httpx.Client) -> None:
    answer = complete(client, max_tokens=5).json()
    assert answer["object"] == "text_completion"
    assert answer["choices"] == [{"index": 0, "text": "abcab", "logprobs": None, "finish_reason": "length"}]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def test_a_streamed_completion_is_the_same_text(client: httpx.Client) -> None:
    with client.stream(
        "POST", "/v1/completions", json={**GREEDY, "prompt": "añ漢", "max_tokens": 12, "stream": True}
    ) as r:
        assert r.headers["content-type"].startswith("text/event-stream")
        chunks = events(r)
    assert text_of(chunks) == "añ漢añ漢"
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert not any("usage" in chunk for chunk in chunks)


def test_usage_comes_last_where_it_is_asked_for(client: httpx.Client) -> None:
    body = {
        **GREEDY,
        "prompt": "abc",
        "max_tokens": 4,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with client.stream("POST", "/v1/completions", json=body) as response:
        last = events(response)[-1]
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_a_chat_goes_through_the_template(client: httpx.Client, router: FakeRouter) -> None:
    answer = chat(client, max_tokens=6).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "<user>", "refusal": None}
    assert len(router.counts.submitted[-1].prompt) == len("<user>hi<a>")


def test_a_streamed_chat_opens_with_its_role(client: httpx.Client) -> None:
    body = {**GREEDY, "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    with client.stream(
        "POST", "/v1/chat/completions", json={**body, "max_tokens": 6, "stream": True}
    ) as response:
        deltas = [chunk["choices"][0]["delta"] for chunk in events(response)]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "<user>"


def test_a_chat_without_a_limit_may_fill_the_context(client: httpx.Client, router: FakeRouter) -> None:
    chat(client)
    assert router.counts.submitted[-1].sampling["max_tokens"] == 256 - len("<user>hi<a>")


def test_choices_of_several_prompts_and_samples_are_numbered_by_prompt(client: httpx.Client) -> None:
    answer = complete(client, prompt=["abc", "xy"], n=2, max_tokens=3).json()
    assert [(c["index"], c["text"]) for c in answer["choices"]] == [
        (0, "abc"),
        (1, "abc"),
        (2, "xyx"),
        (3, "xyx"),
    ]
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}


def test_streams_of_several_choices_are_told_apart(client: httpx.Client) -> None:
    body = {**GREEDY, "prompt": ["abc", "xy"], "n": 2, "max_tokens": 30, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        chunks = events(response)
    texts = [""] * 4
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == ["abc" * 10] * 2 + ["xy" * 15] * 2


def test_token_ids_are_a_prompt(client: httpx.Client, router: FakeRouter) -> None:
    complete(client, prompt=[5, 6, 7], max_tokens=1)
    assert router.counts.submitted[-1].prompt == [5, 6, 7]
    complete(client, prompt=[[5], [6, 7]], max_tokens=1)
    assert sorted(each.prompt for each in router.counts.submitted[-2:]) == [[5], [6, 7]]


def test_a_stop_string_ends_the_text_before_it(client: httpx.Client) -> None:
    answer = complete(client, prompt="abcdef", stop=["de"], max_tokens=50).json()
    assert (answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]) == ("abc", "stop")


def test_log_probabilities_in_both_shapes(client: httpx.Client) -> None:
    columns = complete(client, logprobs=0, max_tokens=3).json()["choices"][0]["logprobs"]
    assert columns["tokens"] == ["a", "b", "c"]
    assert columns["token_logprobs"] == [logprob(i) for i in range(3)]
    assert columns["text_offset"] == [0, 1, 2]
    entries = chat(client, logprobs=True, max_tokens=2).json()["choices"][0]["logprobs"]["content"]
    assert [(each["token"], each["logprob"], each["bytes"]) for each in entries] == [
        ("<", logprob(0), [60]),
        ("u", logprob(1), [117]),
    ]


def test_parts_of_characters_have_their_bytes_and_places(client: httpx.Client) -> None:
    """A token a byte: "añ漢" has characters of 1, 2 and 3."""
    ask = {"prompt": "añ漢", "max_tokens": 8}
    columns = complete(client, logprobs=2, **ask).json()["choices"][0]["logprobs"]
    assert columns["tokens"][:4] == ["a", r"bytes:\xc3", r"bytes:\xb1", r"bytes:\xe6"]
    assert columns["text_offset"] == [0, 1, 1, 2, 2, 2, 3, 4]
    assert [len(each) for each in columns["top_logprobs"]] == [2] * 8, "no two of them read alike"
    streamed: dict[str, list[Any]] = {"tokens": [], "text_offset": []}
    body = {**GREEDY, **ask, "logprobs": 2, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        for chunk in events(response):
            for name, column in streamed.items():
                column += chunk["choices"][0]["logprobs"][name]
    assert streamed == {name: columns[name] for name in streamed}
    said = chat(client, messages=[{"role": "añ漢", "content": "x"}], logprobs=True, max_tokens=7)
    choice = said.json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert bytes(b for each in entries for b in each["bytes"]).decode() == choice["message"]["content"]
    assert entries[2]["token"] == r"\xc3"


def test_every_field_reaches_the_router(client: httpx.Client, router: FakeRouter) -> None:
    fields = {
        "max_tokens": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "seed": -1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "top_k": 5,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "stop_token_ids": [4, 5],
        "ignore_eos": True,
    }
    assert complete(client, **fields).status_code == 200
    sampling = router.counts.submitted[-1].sampling
    wanted = {**fields, "seed": (1 << 64) - 1}
    assert {name: sampling[name] for name in wanted} == wanted


def test_a_json_schema_becomes_a_grammar() -> None:
    schema = {"name": "n", "schema": {"type": "integer"}, "strict": True}
    for form, wanted in (
        ({"type": "json_schema", "json_schema": schema}, {"type": "integer"}),
        ({"type": "json_object"}, {"type": "object"}),
    ):
        body = {"messages": [{"role": "user", "content": "hi"}], "response_format": form}
        grammar = read_chat(Fields(body)).wishes.grammar
        assert grammar is not None
        assert (grammar.kind, json.loads(grammar.text)) == ("json_schema", wanted)
    assert read_chat(Fields({**body, "response_format": {"type": "text"}})).wishes.grammar is None


def test_the_dialects_defaults_are_its_own(client: httpx.Client, router: FakeRouter) -> None:
    client.post("/v1/completions", json={"prompt": "abc", "temperature": None})
    sampling = router.counts.submitted[-1].sampling
    assert (sampling["max_tokens"], sampling["temperature"]) == (16, 1.0)


def test_embeddings_have_unit_length_in_either_form(client: httpx.Client) -> None:
    body = {"model": "tiny", "input": ["abcd", "wxyz"]}
    answer = client.post("/v1/embeddings", json=body).json()
    assert answer["usage"] == {"prompt_tokens": 8, "total_tokens": 8}
    rows = [each["embedding"] for each in answer["data"]]
    assert [each["index"] for each in answer["data"]] == [0, 1]
    assert [sum(x * x for x in row) for row in rows] == pytest.approx([1.0, 1.0], abs=1e-6)
    assert rows[0] != rows[1]
    packed = client.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()
    for each, row in zip(packed["data"], rows, strict=True):
        assert np.frombuffer(base64.b64decode(each["embedding"]), "<f4").tolist() == row


@pytest.mark.parametrize(
    "fields",
    [{"input": ""}, {"input": []}, {"input": "a", "encoding_format": "x"}, {"input": "a", "dimensions": 3}],
)
def test_bad_embeddings_are_refused(client: httpx.Client, fields: dict[str, Any]) -> None:
    assert client.post("/v1/embeddings", json=fields).status_code == 400


def test_models(client: httpx.Client) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [each["id"] for each in listed] == ["tiny"]
    assert client.get("/v1/models/tiny").json() == listed[0]
    assert client.get("/v1/models/gpt").status_code == 404


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": 7}, "prompt"),
        ({"prompt": [["a"]]}, "prompt[0]"),
        ({"prompt": [256]}, "0..255"),
        ({"prompt": "\ud800"}, "surrogate"),
        ({"prompt": "x" * 256}, "at most 255 fit"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"n": 0}, "n is 0"),
        ({"stop": [3]}, "stop"),
        ({"logprobs": 99}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"temprature": 1}, "temprature"),
        ({"tier": "lowbit"}, "tier"),
    ],
)
def test_a_bad_request_is_named(client: httpx.Client, fields: dict[str, Any], names: str) -> None:
    response = client.post("/v1/completions", content=json.dumps({**GREEDY, "prompt": "abc", **fields}))
    assert response.status_code == 400
    error = response.json()["error"]
    assert names in error["message"]
    assert error["type"] == "invalid_request_error"


def test_what_is_not_offered_is_said(client: httpx.Client) -> None:
    refused = complete(client, logit_bias={"5": 1})
    assert refused.status_code == 400
    assert "logit_bias" in refused.json()["error"]["message"]
    assert complete(client, logit_bias={}, user="me", max_tokens=1).status_code == 200
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert chat(client, messages=picture).status_code == 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"7", b"\xff", b'{"prompt": NaN}', b"[" * 100_000])
def test_what_is_no_json_object_is_refused(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/completions", content=body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_errors_have_their_status(client: httpx.Client) -> None:
    assert complete(client, model="gpt").status_code == 404
    assert client.get("/v1/completions").status_code == 405
    nowhere = client.get("/nope")
    assert (nowhere.status_code, nowhere.json()["error"]["message"][:9]) == (404, "GET /nope")


def test_a_chat_needs_messages(client: httpx.Client) -> None:
    for stream in (False, True):
        response = chat(client, messages=[], stream=stream)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "InvalidRequest")
        assert response.json()["error"]["message"].startswith("messages is empty")


@pytest.mark.parametrize("name", ["日本", "é", " a"])
@pytest.mark.parametrize("stream", [False, True])
def test_an_id_that_no_header_can_carry_is_refused_first(
    client: httpx.Client, router: FakeRouter, name: str, stream: bool
) -> None:
    before = len(router.counts.submitted)
    response = complete(client, request_id=name, stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "InvalidRequest")
    assert len(router.counts.submitted) == before


def test_an_id_comes_back_as_it_was_sent(client: httpx.Client) -> None:
    for stream in (False, True):
        response = complete(client, request_id="a b!~", stream=stream)
        assert (response.status_code, response.headers["x-request-id"]) == (200, "a b!~")
