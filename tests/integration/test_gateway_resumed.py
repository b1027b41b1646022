"""A stream that goes on at another gateway behind the tokens that its client sends along."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from cluster.cli.calls import error_of
from cluster.errors import OtherWeights
from protos import generation_pb2 as pb
from support.fake_router import FakeRouter
from support.gateways import gateway, generation_stub, request, served_model

TEXT, TOKENS = "añ漢🙂", 20
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 3},
    "listed": {"top_logprobs": 2},
    "stopped": {"stop": ["🙂a"]},
    "kept": {"resume_window_s": 5.0},
}


def asked(**fields: Any) -> pb.GenerateRequest:
    return request(TEXT, max_tokens=TOKENS, **fields)


def tokens_of(parts: list[pb.GenerateResponse]) -> list[tuple[int, float, list[int]]]:
    """Of every token its id, log-probability and the ids of its alternatives."""
    found = []
    for part in parts:
        listed = [list(one.token_ids) for one in part.alternatives] or [[] for _ in part.token_ids]
        found += list(zip(part.token_ids, part.logprobs, listed, strict=True))
    return found


@pytest.mark.parametrize("name", ASKED)
def test_what_the_client_has_is_not_generated_again(name: str) -> None:
    fields = ASKED[name]
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as stub,
    ):
        whole = list(stub.Generate(asked(**fields)))
        tokens = tokens_of(whole)
        ids = [token for token, *_ in tokens]
        for had in (1, 4, 7, len(ids)):
            known = {"resume_from": had, "resumed_ids": ids[:had], "request_id": f"again-{had}"}
            rest = list(stub.Generate(asked(**known, **fields)))
            assert tokens_of(rest) == tokens[had:]
            assert "".join(part.text for part in whole).endswith("".join(part.text for part in rest))
            assert rest[-1].finish.reason == whole[-1].finish.reason
            assert rest[-1].finish.usage == whole[-1].finish.usage
            assert router.counts.submitted[-1].asked.emitted == tuple(ids[:had])
        assert service.stats()["outstanding"] == 0


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"resume_from": 2, "resumed_ids": [1]}, "resume_from is 2"),
        ({"resumed_ids": [1]}, "resume_from is 0"),
        ({"resume_from": TOKENS + 1, "resumed_ids": [1] * (TOKENS + 1)}, f"max_tokens {TOKENS}"),
        ({"resume_from": 1, "resumed_ids": [256]}, "not in 0..255"),
    ],
)
def test_tokens_that_cannot_have_come_are_refused(fields: dict[str, Any], words: str) -> None:
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as stub,
    ):
        with pytest.raises(grpc.RpcError, match=words) as caught:
            list(stub.Generate(asked(**fields)))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not router.counts.submitted


def test_an_answer_is_not_continued_by_a_gateway_of_another_model() -> None:
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}, served_model(library="new")) as service,
        generation_stub(service) as stub,
    ):
        start, *whole = stub.Generate(asked())
        ids = [token for part in whole for token in part.token_ids]
        had = {"resume_from": 2, "resumed_ids": ids[:2]}
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(asked(weights="old/int8", model="of the old", **had)))
        told = error_of(caught.value, service.address)
        assert isinstance(told, OtherWeights), "also where the old model had another name"
        assert "began with another model" in str(told)
        chat = pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="a")], weights="old", **had)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Chat(chat))
        assert caught.value.code() is grpc.StatusCode.ABORTED
        assert len(router.counts.submitted) == 1
        for weights in (start.start.weights, ""):
            rest = stub.Generate(asked(weights=weights, **had))
            assert [token for part in rest for token in part.token_ids] == ids[2:]
