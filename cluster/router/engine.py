"""The engine: continuous batching over a trunk and whatever carries rows to the experts."""

from __future__ import annotations

import bisect
import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from cluster.compute.trunk import Trunk
from cluster.compute.weights import kv_dtype, kv_name
from cluster.config import EngineConfig
from cluster.dispatch.transport import ExpertTransport
from cluster.errors import InvalidRequest, MoemeshError, NonFinite, Overloaded
from cluster.model.grammar import Grammars, GrammarState
from cluster.router.forward import GateProbe, Outcome, drive, forward
from cluster.router.kv import KvCache, longest_sequence
from cluster.router.paging import Paging
from cluster.router.sampler import Sampler
from cluster.router.scheduler import Limits, plan_step
from cluster.router.sequence import Batch, Piece, Sequence, build_batch
from cluster.types import (
    Embedded,
    Emitted,
    EngineRequest,
    Event,
    Failed,
    Finished,
    FinishReason,
    RequestId,
    Scored,
)

HEAD_ROWS = 64
"""Rows whose logits are held at a time: bounds memory at large vocabularies."""


class Probe(GateProbe, Protocol):
    """Sees gates and logits as they are computed; for quality figures, traces and tests."""

    def logits(self, request_id: RequestId, position: int, logits: np.ndarray) -> None:
        """logits: [vocab] float32 after the token at `position`; copied by whoever keeps it."""


@dataclass(frozen=True)
class EngineStats:
    """steps, rows, preemptions and the prefix counts are since the start, the rest is the present.

    kv_type: f32, bf16 or int8. kv_pages_kept: held by nobody, with contents that a prompt may begin with.
    prefix_tokens: of the sequences admitted that may share pages; prefix_hits: those of them that were
    computed before.
    """

    steps: int
    rows: int
    running: int
    waiting: int
    preemptions: int
    kv_pages_total: int
    kv_pages_used: int
    kv_pages_kept: int
    kv_type: str
    prefix_tokens: int
    prefix_hits: int


class Engine:
    """Not thread-safe: one thread submits, aborts and steps.

    The output of a request depends on the library, its prompt and its sampling parameters alone, never
    on what else is in the batch, on chunking, paging or placement.

    grammars: None where the model has no tokenizer; requests with a grammar are refused then.
    """

    def __init__(
        self,
        trunk: Trunk,
        experts: ExpertTransport,
        config: EngineConfig,
        probe: Probe | None = None,
        grammars: Grammars | None = None,
        library: str = "",
    ) -> None:
        self.trunk, self.experts, self.config, self.probe = trunk, experts, config, probe
        self._grammars = grammars
        dtype = kv_dtype(trunk.weights.floating, config.kv)
        self.kv = KvCache(trunk.spec, config.page_tokens, config.kv_bytes, dtype)
        self.context = longest_sequence(trunk.spec, config, dtype)
        trunk.prepare_positions(self.context)
        self._limits = Limits(config.page_tokens, config.chunk_tokens, config.max_running)
        self._paging = Paging(
            self.kv,
            kv_name(dtype),
            slots=config.max_running,
            context=self.context,
            library=library,
            share=config.prefix_cache,
        )
        self._work = [trunk.workspace() for _ in range(config.micro_batches)]
        self._sampler = Sampler(trunk.spec.vocab, config.max_running, trunk.workers)
        self._free_slots = list(range(config.max_running))
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._arrivals = itertools.count()
        self._steps = self._rows = self._preemptions = 0

    @property
    def idle(self) -> bool:
        return not self._running and not self._waiting

    @property
    def running(self) -> list[RequestId]:
        """Those in the batch."""
        return [sequence.id for sequence in self._running]

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            self._steps,
            self._rows,
            len(self._running),
            len(self._waiting),
            self._preemptions,
            self.kv.pages,
            self.kv.used_pages,
            self.kv.pool.kept,
            kv_name(self.kv.keys.dtype),
            self._paging.prompt_tokens,
            self._paging.shared_tokens,
        )

    def prepare(self, request: EngineRequest) -> None:
        """Compile the request's grammar, so that `submit` finds it compiled. Any thread may call this.

        Raises InvalidRequest for a grammar that is wrong.
        """
        self._grammar(request)

    def submit(self, request: EngineRequest) -> None:
        """Queue a request. Raises InvalidRequest (empty or too long prompt, unknown token id, nothing to
        generate, an id that is in use, a wrong grammar) and Overloaded when `max_waiting` requests wait
        already."""
        self._check(request)
        if len(self._waiting) >= self.config.max_waiting:
            raise Overloaded(f"{len(self._waiting)} requests are waiting already; try again later")
        sequence = Sequence(request, next(self._arrivals), list(request.prompt_ids))
        sequence.grammar = self._grammar(request)
        bisect.insort(self._waiting, sequence, key=_rank)

    def abort(self, request_id: RequestId) -> bool:
        """Forget a request at once and free all it holds; False if it is not (or no longer) known."""
        for sequence in itertools.chain(self._running, self._waiting):
            if sequence.id == request_id:
                self._retire(sequence)
                return True
        return False

    def step(self) -> list[Event]:
        """Compute one batch. A request submitted before the call takes part in it if there is room.

        An error of the transport ends the requests of the batch with `Failed`; the engine goes on.
        """
        pieces = self._schedule()
        if not pieces:
            return []
        self._steps += 1
        self._rows += sum(piece.count for piece in pieces)
        batches = [
            build_batch(part, self._paging.table, self.config.page_tokens) for part in self._split(pieces)
        ]
        runs = [
            forward(self.trunk, self._work[i], self._paging.view, batch, self._steps, i, self.probe)
            for i, batch in enumerate(batches)
        ]
        try:
            outcomes = drive(runs, self._steps, self.experts)
        except MoemeshError as error:
            return [self._fail(piece.sequence, error) for piece in pieces]
        events: list[Event] = []
        for batch, outcome in zip(batches, outcomes, strict=True):
            events += self._conclude(batch, outcome)
        return events

    def fail_all(self, error: MoemeshError) -> list[Event]:
        """End every request with `error` and free all they hold."""
        return [self._fail(sequence, error) for sequence in [*self._running, *self._waiting]]

    def _grammar(self, request: EngineRequest) -> GrammarState | None:
        grammar = request.sampling.grammar
        if grammar is None:
            return None
        if self._grammars is None:
            raise InvalidRequest("this model has no tokenizer, so its output cannot follow a grammar")
        return self._grammars.compile(grammar)

    def _check(self, request: EngineRequest) -> None:
        ids = request.prompt_ids
        if any(s.id == request.request_id for s in itertools.chain(self._running, self._waiting)):
            raise InvalidRequest(f"request {request.request_id!r} is running already; choose another id")
        if request.kind == "generate" and request.sampling.max_tokens < 1:
            raise InvalidRequest("max_tokens is 0; the engine generates at least one token")
        if not ids:
            raise InvalidRequest("the prompt is empty; give at least one token")
        if len(ids) + (request.kind == "generate") > self.context:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens and the context holds {self.context}; shorten the prompt"
            )
        if min(ids) < 0 or max(ids) >= self.trunk.spec.vocab:
            raise InvalidRequest(f"token ids must be below the vocabulary size {self.trunk.spec.vocab}")

    def _schedule(self) -> list[Piece]:
        """Apply the plan of the next step to the sequences and the KV pages."""
        for sequence in self._waiting[: len(self._free_slots)]:
            self._paging.look(sequence)
        self._paging.weigh(self._running)
        plan = plan_step(self._running, self._waiting, self.kv.free_pages, self._limits)
        known = [*self._running, *self._waiting]
        for index in plan.preempted:
            self._preempt(known[index])
        for index in plan.admitted:
            self._admit(known[index])
        return [self._paging.allocate(known[chunk.sequence], chunk) for chunk in plan.chunks]

    def _admit(self, sequence: Sequence) -> None:
        self._waiting.remove(sequence)
        sequence.slot = self._free_slots.pop()
        bisect.insort(self._running, sequence, key=_rank)
        self._paging.admit(sequence)
        self._sampler.assign(sequence.slot, sequence.request.sampling)

    def _preempt(self, sequence: Sequence) -> None:
        self._release(sequence)
        self._running.remove(sequence)
        sequence.restart()
        bisect.insort(self._waiting, sequence, key=_rank)
        self._preemptions += 1

    def _split(self, pieces: list[Piece]) -> list[tuple[Piece, ...]]:
        """Into micro-batches of about equal rows; a sequence is never in two."""
        parts = min(self.config.micro_batches, len(pieces))
        total, bounds, seen = sum(p.count for p in pieces), [0], 0
        for number, piece in enumerate(pieces[:-1]):
            seen += piece.count
            if len(bounds) < parts and seen * parts >= total * len(bounds):
                bounds.append(number + 1)
        return [tuple(pieces[a:b]) for a, b in itertools.pairwise([*bounds, len(pieces)])]

    def _conclude(self, batch: Batch, outcome: Outcome) -> list[Event]:
        """Logits, scores and the next tokens of a micro-batch."""
        events: list[Event] = []
        rows: list[int] = []
        sampled: list[Sequence] = []
        first = 0
        for piece in batch.pieces:
            sequence, last = piece.sequence, first + piece.count - 1
            broken = outcome.broken[first : last + 1]
            sequence.computed += piece.count
            if (broken >= 0).any():
                events.append(self._fail(sequence, NonFinite.at(int(broken[broken >= 0][0]))))
                first += piece.count
                continue
            self._paging.publish(sequence)
            if sequence.request.kind != "generate":
                whole = self._score if sequence.request.kind == "score" else self._embed
                events += whole(piece, outcome.hidden[first : last + 1])
            elif piece.completes:
                rows.append(last)
                sampled.append(sequence)
            first += piece.count
        for begin in range(0, len(rows), HEAD_ROWS):
            part = slice(begin, begin + HEAD_ROWS)
            events += self._sample(sampled[part], outcome.hidden[rows[part]])
        return events

    def _logits(self, hidden: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([rows, padded vocab] float32, [rows] finite flags)."""
        return self.trunk.head(self._work[0], hidden)

    def _sample(self, sequences: list[Sequence], hidden: np.ndarray) -> list[Event]:
        logits, finite = self._logits(hidden)
        self._observe(sequences, [s.length - 1 for s in sequences], logits)
        sampled = self._sampler.sample(logits, sequences)
        events: list[Event] = []
        for sequence, token, logprob, listed, sound in zip(sequences, *sampled, finite.tolist(), strict=True):
            if not sound:
                events.append(self._fail(sequence, NonFinite.at(self.trunk.spec.layers)))
                continue
            if sequence.grammar is not None:
                sequence.grammar.advance(token)
                if sequence.grammar.error:
                    events.append(self._fail(sequence, InvalidRequest(f"grammar: {sequence.grammar.error}")))
                    continue
            sequence.tokens.append(token)
            sequence.emitted += 1
            events.append(Emitted(sequence.id, token, logprob, listed))
            reason = self._finish_reason(sequence, token)
            if reason:
                self._retire(sequence)
                events.append(Finished(sequence.id, reason, sequence.prompt_length, sequence.emitted))
        return events

    def _score(self, piece: Piece, hidden: np.ndarray) -> list[Event]:
        sequence = piece.sequence
        for begin in range(0, piece.count, HEAD_ROWS):
            part = hidden[begin : begin + HEAD_ROWS]
            position = piece.begin + begin
            logits, finite = self._logits(part)
            if not finite.all():
                return [self._fail(sequence, NonFinite.at(self.trunk.spec.layers))]
            self._observe([sequence] * len(part), list(range(position, position + len(part))), logits)
            targets = np.array(sequence.tokens[position + 1 : position + 1 + len(part)], np.int32)
            sequence.scores.append(self._sampler.score(logits[: len(targets)], targets))
            if count := sequence.request.sampling.top_logprobs:
                sequence.alternatives += self._sampler.top(logits, list(range(len(targets))), count)
        if not piece.completes:
            return []
        self._retire(sequence)
        return [Scored(sequence.id, np.concatenate(sequence.scores), tuple(sequence.alternatives))]

    def _embed(self, piece: Piece, hidden: np.ndarray) -> list[Event]:
        """Add the rows one by one in the order of the tokens, whatever the chunks were."""
        sequence = piece.sequence
        rows, finite = self.trunk.final(self._work[0], hidden)
        if not finite.all():
            return [self._fail(sequence, NonFinite.at(self.trunk.spec.layers))]
        width = self.trunk.spec.hidden
        if sequence.total is None:
            sequence.total = np.zeros(width, np.float64)
        for row in rows:
            sequence.total += row[:width]
        if not piece.completes:
            return []
        self._retire(sequence)
        mean = (sequence.total / sequence.length).astype(np.float32)
        return [Embedded(sequence.id, mean, sequence.length)]

    def _observe(self, sequences: list[Sequence], positions: list[int], logits: np.ndarray) -> None:
        if self.probe is None:
            return
        for sequence, position, row in zip(sequences, positions, logits, strict=True):
            self.probe.logits(sequence.id, position, row[: self.trunk.spec.vocab])

    def _finish_reason(self, sequence: Sequence, token: int) -> FinishReason | None:
        sampling, grammar = sequence.request.sampling, sequence.grammar
        ends = () if sampling.ignore_eos else self.trunk.spec.eos_ids
        if token in ends or token in sampling.stop_token_ids or (grammar is not None and grammar.complete):
            return "stop"
        if sequence.emitted >= sampling.max_tokens or sequence.length >= self.context:
            return "length"
        return None

    def _fail(self, sequence: Sequence, error: MoemeshError) -> Failed:
        self._retire(sequence)
        return Failed(sequence.id, error, sequence.emitted)

    def _retire(self, sequence: Sequence) -> None:
        if sequence.slot < 0:
            self._waiting.remove(sequence)
            return
        self._release(sequence)
        self._running.remove(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._paging.release(sequence)
        self._free_slots.append(sequence.slot)
        sequence.slot = -1


def _rank(sequence: Sequence) -> int:
    return sequence.rank
