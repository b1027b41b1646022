"""A request that another engine had begun goes on with the same bits, wherever it was cut."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from cluster.config import EngineConfig
from cluster.errors import InvalidRequest
from cluster.library.bundled import open_model
from cluster.router.engine import Engine
from cluster.types import EngineRequest, Finished, Grammar, RequestId, SamplingParams
from support.engines import Answer, engine_over, request, run_all

CONFIG = EngineConfig(kv_bytes=8 << 20, max_running=8, page_tokens=16)
TOKENS = 40
PROMPT = list(range(5, 26))
COLOURS = Grammar("regex", r"(red|green|blue)(, (red|green|blue)){3,9}\.")
KINDS: dict[str, dict[str, object]] = {
    "greedy": {},
    "sampled": {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "seed": 7},
    "penalties": {
        "temperature": 1.1,
        "seed": 1 << 63,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.75,
    },
    "alternatives": {"temperature": 0.7, "seed": 3, "top_logprobs": 5},
    "grammar": {"temperature": 1.0, "seed": 11, "grammar": COLOURS},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with engine_over(open_model(), CONFIG) as engine:
        yield engine


@pytest.fixture(scope="module")
def whole(engine: Engine) -> dict[str, Answer]:
    return run_all(engine, [asked(name) for name in KINDS])


def asked(name: str, emitted: list[int] | None = None, called: str = "") -> EngineRequest:
    one = request(called or name, PROMPT, tokens=TOKENS, **KINDS[name])
    return dataclasses.replace(one, emitted=tuple(emitted or ()))


@pytest.mark.parametrize("share", [True, False], ids=["found pages", "recomputed"])
def test_the_rest_is_the_same_wherever_it_was_cut(whole: dict[str, Answer], share: bool) -> None:
    """At the first token, and before, at and behind the end of a KV page; all in one batch."""
    cuts = (1, 10, 11, 12)
    with engine_over(open_model(), dataclasses.replace(CONFIG, prefix_cache=share)) as fresh:
        for name, answer in whole.items():
            places = [cut for cut in cuts if cut < len(answer.tokens)]
            rest = run_all(fresh, [asked(name, answer.tokens[:cut], f"{name}/{cut}") for cut in places])
            for cut, got in zip(places, rest.values(), strict=True):
                assert got.tokens == answer.tokens[cut:], (name, cut)
                assert got.logprobs == answer.logprobs[cut:]
                assert got.alternatives == answer.alternatives[cut:]
                assert got.reason == answer.reason
        assert fresh.kv.used_pages == 0


@pytest.mark.parametrize("name", ["greedy", "grammar"])
def test_what_had_all_its_tokens_ends_at_once(engine: Engine, whole: dict[str, Answer], name: str) -> None:
    tokens = whole[name].tokens
    told = engine.submit(asked(name, tokens))
    assert told == [Finished(RequestId(name), whole[name].reason, len(PROMPT), len(tokens))]  # type: ignore[arg-type]
    assert engine.idle


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (lambda: asked("grammar", [5, 5, 5]), "grammar, after 3 tokens"),
        (lambda: asked("greedy", [10**6]), "vocabulary"),
        (lambda: asked("greedy", [-1]), "vocabulary"),
        (lambda: asked("greedy", [1] * (TOKENS + 1)), "at most 40"),
        (lambda: dataclasses.replace(request("a", PROMPT, kind="score"), emitted=(1,)), "at most 0"),
        (
            lambda: EngineRequest(RequestId("a"), (1,), SamplingParams(1 << 20), emitted=(1,) * (1 << 18)),
            "context holds",
        ),
    ],
)
def test_what_cannot_have_been_emitted_is_refused(engine: Engine, one, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        engine.submit(one())
    assert engine.idle
