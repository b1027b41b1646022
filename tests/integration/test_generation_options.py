"""What a request may ask of its sampling, in a real engine over the bundled model."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from cluster.compute import threads
from cluster.config import EngineConfig
from cluster.errors import InvalidRequest
from cluster.library.bundled import open_model
from cluster.library.reader import Library
from cluster.model.tokenizer import Tokenizer
from cluster.router.engine import Engine
from cluster.types import EngineRequest, Grammar, RequestId, SamplingParams, sample_seed
from support.engines import Answer, Trace, engine_over, request, run_all

CONFIG = EngineConfig(kv_bytes=8 << 20, max_running=8)
KV_FOR_FEW = 200_000
"""Bytes of KV pages: less than the requests of a batch need together."""

PERSON = Grammar(
    "json_schema",
    json.dumps(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "age": {"type": "integer", "minimum": 0, "maximum": 130},
                "tags": {"type": "array", "items": {"enum": ["é", "b"]}, "maxItems": 2},
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": False,
        }
    ),
)
ADDITIVE = {"presence_penalty": 0.5, "frequency_penalty": 0.75}
SAMPLED = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01}


@pytest.fixture(scope="module")
def library() -> Library:
    return open_model()


@pytest.fixture(scope="module")
def tokenizer(library: Library) -> Tokenizer:
    return library.tokenizer()


@pytest.fixture(scope="module")
def prompt(tokenizer: Tokenizer) -> list[int]:
    return tokenizer.encode("In the beginning God created")


@pytest.fixture(scope="module")
def engine(library: Library) -> Iterator[Engine]:
    with engine_over(library, CONFIG) as built:
        yield built


def constrained(name: str, prompt: list[int], grammar: Grammar, tokens: int = 80, **options) -> EngineRequest:
    """Unlike `request`, it ends at an end of sequence."""
    params = SamplingParams(max_tokens=tokens, grammar=grammar, **options)
    return EngineRequest(RequestId(name), tuple(prompt), params)


def answer_of(engine: Engine, wanted: EngineRequest) -> Answer:
    answer = run_all(engine, [wanted])[wanted.request_id]
    assert answer.error is None
    return answer


def check_person(text: str) -> None:
    value = json.loads(text)
    assert set(value) == {"name", "age", "tags"}
    assert isinstance(value["name"], str)
    assert 0 <= value["age"] <= 130
    assert all(tag in ("é", "b") for tag in value["tags"])


@pytest.mark.parametrize("options", [{}, {"seed": 3, **SAMPLED}, {"seed": 4, **SAMPLED, **ADDITIVE}])
def test_output_follows_a_schema_and_ends_when_it_is_complete(
    engine: Engine, tokenizer: Tokenizer, prompt: list[int], options: dict[str, object]
) -> None:
    answer = answer_of(engine, constrained("a", prompt, PERSON, **options))
    assert answer.reason == "stop"
    check_person(tokenizer.decode(answer.tokens))


def test_a_regex_and_a_context_free_grammar(engine: Engine, tokenizer: Tokenizer, prompt: list[int]) -> None:
    date = answer_of(engine, constrained("a", prompt, Grammar("regex", r"[0-9]{4}-[0-9]{2}-[0-9]{2}")))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", tokenizer.decode(date.tokens))
    nested = Grammar("lark", 'start: "(" start ")" | "x" | "y"')
    text = tokenizer.decode(answer_of(engine, constrained("b", prompt, nested, tokens=40)).tokens)
    assert re.fullmatch(r"(\(*)([xy]?)(\)*)", text)


def test_a_grammar_that_may_end_ends_with_the_models_end_of_sequence(
    engine: Engine, library: Library, prompt: list[int]
) -> None:
    """Every word may be followed by another: only the model itself can end it, or max_tokens."""
    words = Grammar("regex", "[a-z ]*")
    answer = answer_of(engine, constrained("a", prompt, words, tokens=12, temperature=1.5, seed=2))
    assert answer.reason in ("stop", "length")
    assert (answer.tokens[-1] in library.spec.eos_ids) == (answer.reason == "stop")


def test_a_cut_output_is_the_beginning_of_a_whole_one(engine: Engine, prompt: list[int]) -> None:
    whole = answer_of(engine, constrained("a", prompt, PERSON))
    cut = answer_of(engine, constrained("a", prompt, PERSON, tokens=5))
    assert (cut.tokens, cut.reason) == (whole.tokens[:5], "length")


def test_log_probabilities_are_the_models_own(library: Library, prompt: list[int]) -> None:
    """Masks and penalties change what is chosen, not what is said of it."""
    trace = Trace()
    with engine_over(library, CONFIG, probe=trace) as engine:
        answer = answer_of(engine, constrained("a", prompt, PERSON, tokens=6, top_logprobs=3, **ADDITIVE))
    logits = trace.matrix("a")[-len(answer.tokens) :].astype(np.float64)
    for row, token, logprob, listed in zip(
        logits, answer.tokens, answer.logprobs, answer.alternatives, strict=True
    ):
        exact = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert logprob == pytest.approx(exact[token], abs=1e-4)
        assert [t for t, _ in listed] == np.argsort(-row, kind="stable")[:3].tolist()
        assert [value for _, value in listed] == pytest.approx(exact[[t for t, _ in listed]], abs=1e-4)


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (Grammar("json_schema", "{"), "not JSON"),
        (Grammar("json_schema", "[]"), "JSON object"),
        (Grammar("json_schema", '{"type": "objekt"}'), "objekt"),
        (Grammar("json_schema", '{"not": {}}'), "not"),
        (Grammar("regex", "(a"), "unclosed"),
        (Grammar("regex", "a(?=b)"), "look-ahead"),
        (Grammar("lark", "start: nothing"), "nothing"),
        (Grammar("json_schema", '{"items":' * 400 + "{}" + "}" * 400), "recursion"),
    ],
)
def test_a_wrong_grammar_is_refused_by_what_is_wrong(
    engine: Engine, prompt: list[int], grammar: Grammar, says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says) as caught:
        engine.submit(constrained("a", prompt, grammar))
    assert "\n" not in str(caught.value)
    assert engine.idle


def mixed(prompt: list[int]) -> list[EngineRequest]:
    """Every option, side by side with requests that use none."""
    return [
        request("greedy", prompt, 20),
        request("sampled", prompt, 20, seed=5, **SAMPLED),
        request("penalised", prompt, 20, seed=6, repetition_penalty=1.3, **SAMPLED, **ADDITIVE),
        request("listed", prompt, 20, top_logprobs=4),
        constrained("schema", prompt, PERSON),
        constrained("sampled-schema", prompt, PERSON, seed=7, **SAMPLED),
        constrained("penalised-schema", prompt, PERSON, repetition_penalty=1.2, top_logprobs=2, **ADDITIVE),
    ]


def bits(answers: dict[str, Answer]) -> dict[str, tuple[object, ...]]:
    return {
        name: (tuple(a.tokens), np.array(a.logprobs, "<f4").tobytes(), tuple(a.alternatives))
        for name, a in answers.items()
    }


@pytest.fixture(scope="module")
def alone(engine: Engine, prompt: list[int]) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for one in mixed(prompt):
        found |= bits(run_all(engine, [one]))
    return found


def test_neither_batch_nor_nodes_change_a_bit(
    library: Library, prompt: list[int], alone: dict[str, tuple[object, ...]]
) -> None:
    with engine_over(library, dataclasses.replace(CONFIG, threads=2), nodes=2) as engine:
        assert bits(run_all(engine, mixed(prompt))) == alone


def test_a_preempted_request_keeps_its_place_in_the_grammar(
    library: Library, prompt: list[int], alone: dict[str, tuple[object, ...]]
) -> None:
    config = dataclasses.replace(CONFIG, page_tokens=16, kv_bytes=KV_FOR_FEW)
    with engine_over(library, config) as engine:
        assert bits(run_all(engine, mixed(prompt))) == alone
        assert engine.stats.preemptions > 0


def test_a_penalty_alone_is_the_kernels_and_with_others_the_same(engine: Engine, prompt: list[int]) -> None:
    """The repetition penalty is applied in two places: to the same bits."""
    plain = answer_of(engine, request("a", prompt, 20, repetition_penalty=1.3, seed=1, **SAMPLED))
    edited = answer_of(
        engine,
        request("a", prompt, 20, repetition_penalty=1.3, presence_penalty=1e-30, seed=1, **SAMPLED),
    )
    assert (edited.tokens, edited.logprobs) == (plain.tokens, plain.logprobs)


def test_samples_of_derived_seeds_differ(engine: Engine, prompt: list[int]) -> None:
    wanted = [request(str(i), prompt, 12, seed=sample_seed(9, i), temperature=1.0) for i in range(4)]
    answers = run_all(engine, wanted)
    assert len({tuple(answer.tokens) for answer in answers.values()}) == 4


def test_scores_come_with_alternatives(engine: Engine, prompt: list[int]) -> None:
    plain = answer_of(engine, request("a", prompt, 0, "score"))
    listed = answer_of(engine, request("a", prompt, 0, "score", top_logprobs=3))
    assert plain.scores is not None
    assert listed.scores is not None
    assert listed.scores.tobytes() == plain.scores.tobytes()
    assert [len(pairs) for pairs in listed.alternatives] == [3] * (len(prompt) - 1)
    for token, score, pairs in zip(prompt[1:], listed.scores, listed.alternatives, strict=True):
        assert dict(pairs).get(token, score) == score


def test_an_embedding_is_the_mean_whatever_the_chunks_and_the_batch(
    library: Library, tokenizer: Tokenizer
) -> None:
    texts = [tokenizer.encode("In the beginning was the Word. " * n) for n in (1, 4, 9)]
    wanted = [request(str(i), ids, 0, "embed") for i, ids in enumerate(texts)]
    found = []
    for config in (CONFIG, dataclasses.replace(CONFIG, chunk_tokens=7, page_tokens=16)):
        with engine_over(library, config) as engine:
            together = run_all(engine, [*wanted, request("other", texts[0], 5)])
            found.append([together[str(i)].embedding.tobytes() for i in range(3)])
            found.append([answer_of(engine, one).embedding.tobytes() for one in wanted])
    assert all(values == found[0] for values in found)
    assert len(np.frombuffer(found[0][0], "<f4")) == library.spec.hidden
    assert len(set(found[0])) == 3


def test_options_that_nobody_uses_cost_no_kernel_call(
    library: Library, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[str] = Counter()
    original = threads.Workers.run

    def counted(workers: threads.Workers, kernel: object, items: int, *args: object) -> None:
        calls[getattr(kernel, "__name__", "?")] += 1
        original(workers, kernel, items, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(threads.Workers, "run", counted)

    def calls_of(**options: object) -> Counter[str]:
        with engine_over(library, CONFIG) as engine:
            calls.clear()
            run_all(engine, [request("a", prompt, 3, **options)])
            return calls.copy()

    plain = calls_of()
    assert plain["top_rows"] == plain["score_rows"] == 0
    assert calls_of(top_logprobs=2) - plain == {"top_rows": 3}
    assert calls_of(presence_penalty=0.1) - plain == {"score_rows": 3}
