"""The engine: continuous batching over a trunk and whatever carries rows to the experts."""

from __future__ import annotations

import bisect
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cluster.compute.trunk import Trunk
from cluster.compute.weights import kv_dtype, kv_name
from cluster.config import EngineConfig
from cluster.dispatch.transport import ExpertTransport
from cluster.errors import InvalidRequest, MoemeshError, NonFinite, Overloaded
from cluster.model.grammar import Grammars, GrammarState
from cluster.router.forward import Outcome, drive, forward
from cluster.router.halving import MOST_PARTS, Halving
from cluster.router.kv import KvCache, longest_sequence
from cluster.router.paging import Paging
from cluster.router.readout import HEAD_ROWS, Probe, Readout
from cluster.router.sampler import Sampler
from cluster.router.scheduler import Limits, plan_step
from cluster.router.sequence import Batch, Piece, Sequence, build_batch
from cluster.types import (
    Emitted,
    EngineRequest,
    Event,
    Failed,
    Finished,
    FinishReason,
    RequestId,
)


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
    latency: seconds to the experts and back on the slowest link, beside what they compute.
    """

    def __init__(
        self,
        trunk: Trunk,
        experts: ExpertTransport,
        config: EngineConfig,
        probe: Probe | None = None,
        grammars: Grammars | None = None,
        library: str = "",
        latency: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
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
            across_tenants=config.share_prefixes,
        )
        self._halving = Halving(config.micro_batches, len(trunk.spec.sparse_layers), latency, clock)
        self._work = [trunk.workspace() for _ in range(max(MOST_PARTS, config.micro_batches))]
        self._sampler = Sampler(trunk.spec.vocab, config.max_running, trunk.workers)
        self._readout = Readout(trunk, self._work[0], self._sampler, probe)
        self._free_slots = list(range(config.max_running))
        self._running: list[Sequence] = []
        self._waiting: list[Sequence] = []
        self._known: dict[RequestId, Sequence] = {}  # all of both
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

    def prepare(self, request: EngineRequest) -> GrammarState | None:
        """What `submit` needs besides the request and takes its time. Any thread may call this.

        Raises InvalidRequest for a grammar that is wrong, or that the tokens emitted before do not follow.
        """
        grammar = request.sampling.grammar
        if grammar is None:
            return None
        if self._grammars is None:
            raise InvalidRequest("this model has no tokenizer, so its output cannot follow a grammar")
        state = self._grammars.compile(grammar)
        for token in request.emitted:
            state.advance(token)
        if state.error:
            raise InvalidRequest(f"grammar, after {len(request.emitted)} tokens emitted: {state.error}")
        return state

    def submit(self, request: EngineRequest, prepared: GrammarState | None = None) -> list[Event]:
        """Queue a request. prepared: what `prepare` gave for it, None to have it prepared here. Returns what
        can be said at once: the end of a request that had all its tokens from another router.

        Raises InvalidRequest (empty or too long prompt, unknown token id, nothing to generate, an id that is
        in use, a wrong grammar) and Overloaded when `max_waiting` requests wait already.
        """
        self._check(request)
        if len(self._waiting) >= self.config.max_waiting:
            raise Overloaded(f"{len(self._waiting)} requests are waiting already; try again later")
        sequence = Sequence(request, next(self._arrivals), [*request.prompt_ids, *request.emitted])
        sequence.emitted = len(request.emitted)
        sequence.grammar = prepared or self.prepare(request)
        if sequence.emitted and (reason := self._finish_reason(sequence, sequence.tokens[-1])):
            return [Finished(sequence.id, reason, sequence.prompt_length, sequence.emitted)]
        bisect.insort(self._waiting, sequence, key=_rank)
        self._known[sequence.id] = sequence
        return []

    def abort(self, request_id: RequestId) -> bool:
        """Forget a request at once and free all it holds; False if it is not (or no longer) known."""
        sequence = self._known.get(request_id)
        if sequence is None:
            return False
        self._retire(sequence)
        return True

    def step(self) -> list[Event]:
        """Compute one batch. A request submitted before the call takes part in it if there is room.

        An error of the transport ends the requests of the batch with `Failed`; the engine goes on.
        """
        pieces = self._schedule()
        if not pieces:
            return []
        self._steps += 1
        self._rows += sum(piece.count for piece in pieces)
        parts = self._halving.begin()
        batches = [
            build_batch(part, self._paging.table, self.config.page_tokens)
            for part in self._split(pieces, parts)
        ]
        runs = [
            forward(self.trunk, self._work[i], self._paging.view, batch, self._steps, i, self.probe)
            for i, batch in enumerate(batches)
        ]
        try:
            outcomes = drive(runs, self._steps, self.experts)
        except MoemeshError as error:
            return [self._fail(piece.sequence, error) for piece in pieces]
        self._halving.end()
        events: list[Event] = []
        for batch, outcome in zip(batches, outcomes, strict=True):
            events += self._conclude(batch, outcome)
        return events

    def fail_all(self, error: MoemeshError) -> list[Event]:
        """End every request with `error` and free all they hold."""
        return [self._fail(sequence, error) for sequence in [*self._running, *self._waiting]]

    def _check(self, request: EngineRequest) -> None:
        ids = request.prompt_ids
        if request.request_id in self._known:
            raise InvalidRequest(f"request {request.request_id!r} is running already; choose another id")
        if request.kind == "generate" and request.sampling.max_tokens < 1:
            raise InvalidRequest("max_tokens is 0; the engine generates at least one token")
        if not ids:
            raise InvalidRequest("the prompt is empty; give at least one token")
        room = max(len(request.emitted), request.kind == "generate")
        if len(ids) + room > self.context:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens and the context holds {self.context}; shorten the prompt"
            )
        if min(known := ids + request.emitted) < 0 or max(known) >= self.trunk.spec.vocab:
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

    @staticmethod
    def _split(pieces: list[Piece], parts: int) -> list[tuple[Piece, ...]]:
        """Into micro-batches of about equal rows; a sequence is never in two."""
        parts = min(parts, len(pieces))
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
                events += self._take(piece, outcome.hidden[first : last + 1])
            elif piece.completes:
                rows.append(last)
                sampled.append(sequence)
            first += piece.count
        for begin in range(0, len(rows), HEAD_ROWS):
            part = slice(begin, begin + HEAD_ROWS)
            events += self._sample(sampled[part], outcome.hidden[rows[part]])
        return events

    def _sample(self, sequences: list[Sequence], hidden: np.ndarray) -> list[Event]:
        sampled, finite = self._readout.sample(sequences, hidden)
        events: list[Event] = []
        for sequence, token, logprob, listed, sound in zip(sequences, *sampled, finite, strict=True):
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

    def _take(self, piece: Piece, hidden: np.ndarray) -> list[Event]:
        """Rows of a request that generates nothing."""
        if not self._readout.take(piece, hidden):
            return [self._fail(piece.sequence, NonFinite.at(self.trunk.spec.layers))]
        if not piece.completes:
            return []
        self._retire(piece.sequence)
        return [self._readout.answer(piece.sequence)]

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
        del self._known[sequence.id]
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
