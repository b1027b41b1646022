"""The engine as its users meet it: what joins when, what is freed when, what is refused."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.compute import threads
from cluster.config import EngineConfig
from cluster.dispatch.transport import ExpertCall, ExpertRows
from cluster.errors import InvalidRequest, NodeLost, NonFinite, OutOfMemoryBudget, Overloaded
from cluster.library.reader import Library
from cluster.router.engine import Engine
from cluster.router.kv import page_bytes
from cluster.types import Emitted, EngineRequest, Failed, Finished, RequestId, SamplingParams, Scored
from support.checkpoints import case
from support.engines import engine_over, request, run_all, tiny_library

MODEL = "qwen3-tied-gqa"
CONFIG = EngineConfig(kv_bytes=4 << 20, max_running=8, max_waiting=8)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), MODEL)


@pytest.fixture
def engine(library: Library) -> Iterator[Engine]:
    with engine_over(library, CONFIG) as built:
        yield built


def prompt(length: int) -> list[int]:
    return case(MODEL).prompt(length)


def test_a_request_that_arrives_mid_decode_joins_the_next_step(engine: Engine) -> None:
    engine.submit(request("early", prompt(10), tokens=20))
    for _ in range(5):
        engine.step()
    engine.submit(request("late", prompt(7), tokens=3))
    emitted = [event.request_id for event in engine.step() if isinstance(event, Emitted)]
    assert emitted == ["early", "late"], "its prompt is prefilled and its first token sampled in that step"


def test_a_prompt_takes_as_many_steps_as_chunks(library: Library) -> None:
    with engine_over(library, dataclasses.replace(CONFIG, chunk_tokens=16)) as engine:
        engine.submit(request("a", prompt(50), tokens=1))
        steps = [bool(engine.step()) for _ in range(4)]
    assert steps == [False, False, False, True], "16 + 16 + 16 + 2 tokens"


def test_kernel_calls_do_not_grow_with_the_batch(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def count(name: str) -> None:
        original = getattr(threads.Workers, name)

        def counted(workers: threads.Workers, kernel: object, *args: object) -> None:
            calls[getattr(kernel, "__name__", "?")] += 1
            original(workers, kernel, *args)

        monkeypatch.setattr(threads.Workers, name, counted)

    count("run")
    count("run_shares")

    def calls_of_a_step(sequences: int) -> Counter[str]:
        with engine_over(library, CONFIG) as engine:
            for number in range(sequences):
                engine.submit(request(str(number), prompt(3 + number), tokens=4))
            engine.step()
            calls.clear()
            assert len([e for e in engine.step() if isinstance(e, Emitted)]) == sequences
            return calls.copy()

    phases = ("gate_up_int", "quantise_planes", "down_int")
    layers = library.spec.layers
    for sequences in (1, 8):
        step = calls_of_a_step(sequences)
        fused, apart = step.pop("ffn_int", 0), {step.pop(name, 0) for name in phases}
        assert len(apart) == 1, "a phase is one call, however many experts and sequences"
        phased = apart.pop()
        assert max(fused, phased) <= layers <= fused + phased
        if sequences == 1:
            others = step
    assert step == others, "nor do the other kernels' calls grow"


def test_abort_frees_pages_and_slots_at_once(engine: Engine) -> None:
    for number in range(8):
        engine.submit(request(str(number), prompt(40), tokens=50))
    engine.step()
    used = engine.stats.kv_pages_used
    for number in range(0, 8, 2):
        assert engine.abort(RequestId(str(number)))
    assert engine.stats.kv_pages_used == used // 2
    assert engine.stats.running == 4
    assert not engine.abort(RequestId("0")), "it is gone"
    survivors = {event.request_id for event in engine.step() if isinstance(event, Emitted)}
    assert survivors == {"1", "3", "5", "7"}
    for number in range(1, 8, 2):
        engine.abort(RequestId(str(number)))
    assert engine.idle
    assert engine.stats.kv_pages_used == 0


def test_a_full_queue_refuses_with_a_hint(engine: Engine) -> None:
    for number in range(CONFIG.max_waiting):
        engine.submit(request(str(number), prompt(3)))
    with pytest.raises(Overloaded) as refused:
        engine.submit(request("one more", prompt(3)))
    assert refused.value.retry_after_s > 0


@pytest.mark.parametrize(
    ("ids", "words"),
    [((), "empty"), ((5,) * 300, "context"), ((99999,), "vocabulary"), ((-1,), "vocabulary")],
)
def test_bad_prompts_are_refused(engine: Engine, ids: tuple[int, ...], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        engine.submit(EngineRequest(RequestId("bad"), ids))


def test_a_sequence_ends_at_the_context(library: Library) -> None:
    with engine_over(library, dataclasses.replace(CONFIG, context=20)) as engine:
        engine.submit(request("a", prompt(15), tokens=100))
        ended = [e for _ in range(10) for e in engine.step() if isinstance(e, Finished)]
    assert [(e.reason, e.completion_tokens) for e in ended] == [("length", 5)]


def test_an_end_of_sequence_token_stops(library: Library) -> None:
    with engine_over(library, CONFIG) as engine:
        tokens = run_all(engine, [request("a", prompt(9), tokens=6)])["a"].tokens
        sampling = SamplingParams(max_tokens=6, stop_token_ids=(tokens[3],))
        engine.submit(EngineRequest(RequestId("b"), tuple(prompt(9)), sampling))
        ended = [e for _ in range(6) for e in engine.step() if isinstance(e, Finished)]
    assert ended[0].reason == "stop"
    assert ended[0].completion_tokens == tokens.index(tokens[3]) + 1


def test_no_memory_for_the_kv_budget(library: Library) -> None:
    need = page_bytes(library.spec, 64, np.uint16)
    with (
        pytest.raises(OutOfMemoryBudget, match=str(need)),
        engine_over(library, dataclasses.replace(CONFIG, kv_bytes=need - 1)),
    ):
        pass
    with (
        pytest.raises(OutOfMemoryBudget, match="available"),
        engine_over(library, dataclasses.replace(CONFIG, kv_bytes=1 << 50)),
    ):
        pass


def test_nan_ends_its_own_request_and_names_the_layer(engine: Engine) -> None:
    """Activations go bad in one row of a batch; the others never notice."""
    alone = run_all(engine, [request("good", prompt(6), tokens=5)])["good"].tokens
    engine.submit(request("bad", prompt(30), tokens=5))
    engine.submit(request("good", prompt(6), tokens=5))
    found: dict[str, list[int]] = {"good": [], "bad": []}
    failures: list[Failed] = []
    poisoned = False
    while not engine.idle:
        for event in engine.step():
            if isinstance(event, Emitted):
                found[event.request_id].append(event.token_id)
            elif isinstance(event, Failed):
                failures.append(event)
        if not poisoned:
            page = next(s for s in engine._running if s.id == "bad").pages[0]
            engine.kv.values[1, page] = 0x7FC0  # NaN in bf16, in layer 1
            poisoned = True
    assert [event.request_id for event in failures] == ["bad"]
    assert isinstance(failures[0].error, NonFinite)
    assert failures[0].error.layer in (1, 2), "met at the norm after layer 1's attention"
    assert failures[0].emitted == len(found["bad"]) == 1
    assert found["good"] == alone


class Flaky:
    """A transport that loses its nodes on one call."""

    def __init__(self, inner: object, fail_at: int) -> None:
        self.inner, self.calls, self.fail_at = inner, 0, fail_at

    def send(self, call: ExpertCall) -> None:
        self.inner.send(call)  # type: ignore[attr-defined]

    def wait(self, step: int, layer: int, micro_batch: int) -> ExpertRows:
        self.calls += 1
        rows = self.inner.wait(step, layer, micro_batch)  # type: ignore[attr-defined]
        if self.calls == self.fail_at:
            raise NodeLost("node-1 did not come back")
        return rows  # type: ignore[no-any-return]

    def close(self) -> None: ...


def test_a_lost_node_ends_the_requests_of_the_step_with_what_they_emitted(engine: Engine) -> None:
    engine.experts = Flaky(engine.experts, fail_at=2 * engine.trunk.spec.layers + 1)
    engine.submit(request("a", prompt(5), tokens=9))
    events = [event for _ in range(4) for event in engine.step()]
    failed = [event for event in events if isinstance(event, Failed)]
    assert [(f.request_id, f.emitted) for f in failed] == [("a", 2)]
    assert engine.idle
    assert engine.stats.kv_pages_used == 0
    assert run_all(engine, [request("b", prompt(5), tokens=3)])["b"].error is None, "the engine goes on"


def test_scores_are_log_probabilities(engine: Engine) -> None:
    """Teacher forcing: the score of what greedy decoding chose is the log-probability it reported."""
    answer = run_all(engine, [request("a", prompt(20), tokens=10)])["a"]
    scored = run_all(engine, [request("s", [*prompt(20), *answer.tokens], kind="score")])["s"].scores
    assert scored is not None
    assert len(scored) == 29
    assert scored[19:].tobytes() == np.array(answer.logprobs, np.float32).tobytes()


def test_budget_of_the_arena_below_one_expert(library: Library, tmp_path: Path) -> None:
    with pytest.raises(OutOfMemoryBudget), engine_over(library, CONFIG, memory_bytes=100):
        pass


def test_a_preempted_score_request_is_scored_once(library: Library) -> None:
    """Two pages of 16 tokens a sequence, but the older one grows into a third: the younger is recomputed."""
    config = dataclasses.replace(
        CONFIG,
        page_tokens=16,
        kv_bytes=6 * page_bytes(library.spec, 16, np.uint16),
        chunk_tokens=8,
        context=64,
    )
    long = [*prompt(40), *prompt(8)]
    with engine_over(library, CONFIG) as engine:
        alone = run_all(engine, [request("s", long, kind="score")])["s"].scores
    with engine_over(library, config) as engine:
        engine.submit(request("old", prompt(45), tokens=19))
        while engine.stats.kv_pages_used < 3 or engine._running[0].computed < 45:
            engine.step()
        engine.submit(request("s", long, kind="score"))
        scored: list[Scored] = []
        while not engine.idle:
            scored += [event for event in engine.step() if isinstance(event, Scored)]
        assert engine.stats.preemptions == 1
    assert alone is not None
    assert [event.logprobs.tobytes() for event in scored] == [alone.tobytes()]


def test_a_preempted_request_can_be_aborted(library: Library) -> None:
    config = dataclasses.replace(CONFIG, page_tokens=16, kv_bytes=4 * page_bytes(library.spec, 16, np.uint16))
    with engine_over(library, config) as engine:
        for name in ("old", "young"):
            engine.submit(request(name, prompt(30), tokens=30))
        while not engine.stats.preemptions:
            engine.step()
        assert engine.stats.waiting == 1
        assert engine.abort(RequestId("young"))
        assert (engine.stats.running, engine.stats.waiting) == (1, 0)
        ended = [e for _ in range(40) for e in engine.step() if isinstance(e, Finished)]
    assert [e.request_id for e in ended] == ["old"]


def test_an_aborted_waiting_request_never_starts(library: Library) -> None:
    with engine_over(library, dataclasses.replace(CONFIG, max_running=1)) as engine:
        engine.submit(request("first", prompt(5), tokens=3))
        engine.submit(request("second", prompt(5), tokens=3))
        engine.step()
        assert engine.abort(RequestId("second"))
        seen = {event.request_id for _ in range(5) for event in engine.step()}
    assert seen == {"first"}


def test_a_request_id_is_used_once_at_a_time(engine: Engine) -> None:
    engine.submit(request("twin", prompt(5), tokens=2))
    with pytest.raises(InvalidRequest, match="twin"):
        engine.submit(request("twin", prompt(5), tokens=2))
    ended = [e for _ in range(3) for e in engine.step() if isinstance(e, Finished)]
    assert [e.completion_tokens for e in ended] == [2], "the first goes on"


def test_nothing_to_generate_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="max_tokens"):
        engine.submit(request("none", prompt(5), tokens=0))


def test_the_shortest_prompts(engine: Engine) -> None:
    """One token to continue by one, and one token with nothing to score."""
    answers = run_all(engine, [request("a", prompt(1), tokens=1), request("s", prompt(1), kind="score")])
    assert len(answers["a"].tokens) == 1
    assert answers["s"].scores is not None
    assert answers["s"].scores.shape == (0,)


def test_a_prompt_one_below_the_context_gets_one_token(library: Library) -> None:
    with engine_over(library, dataclasses.replace(CONFIG, context=20)) as engine:
        assert len(run_all(engine, [request("a", prompt(19), tokens=9)])["a"].tokens) == 1
        scores = run_all(engine, [request("s", prompt(20), kind="score")])["s"].scores
        assert scores is not None
        assert len(scores) == 19
        with pytest.raises(InvalidRequest, match="context"):
            engine.submit(request("b", prompt(20), tokens=1))
