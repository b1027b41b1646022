"""Completions by a model in this process, admitted by the gateway's rules."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import TextIO

from cluster.cli.completion import Completion, Recorder, recorders
from cluster.cli.local import local_engine
from cluster.config import EngineConfig
from cluster.gateway.admission import Admitted, Wishes
from cluster.gateway.admit import admit, sample_requests
from cluster.gateway.served import ServedModel
from cluster.library.bundled import open_model
from cluster.model.text_stream import TextStream
from cluster.router.engine import Engine
from cluster.types import Emitted, Event, Failed, Finished, RequestId, sample_seed


def local_completions(
    model: str,
    variant: str,
    config: EngineConfig,
    prompt: str,
    wishes: Wishes,
    tier: str,
    out: TextIO | None,
    ready: Callable[[], None],
) -> list[Completion]:
    """Load the model into this process and complete `prompt`, once a sample. ready: called when it is loaded.

    The request is checked before anything is loaded. Raises InvalidRequest, LibraryError.
    """
    library = open_model(model)
    served = ServedModel.of(library, library.spec.context, variant)
    admitted = asyncio.run(_admit(served, prompt, wishes, tier))
    if admitted.sampling.max_tokens == 0:
        return [_Local(served, admitted, index, Recorder(None)).empty() for index in range(admitted.samples)]
    with local_engine(library, variant, config) as engine:
        ready()
        samples = [
            _Local(served, admitted, index, recorder)
            for index, recorder in enumerate(recorders(admitted.samples, out))
        ]
        return _run(engine, admitted, samples)


async def _admit(served: ServedModel, prompt: str, wishes: Wishes, tier: str) -> Admitted:
    return await admit(served, await served.tokenise(prompt), wishes, tier=tier)


class _Local:
    """One sample's text and record."""

    def __init__(self, served: ServedModel, admitted: Admitted, index: int, recorder: Recorder) -> None:
        self.id = RequestId(str(index))
        self._recorder = recorder
        self._stream: TextStream = served.text_stream(admitted.stop)
        self._prompt_tokens = len(admitted.prompt_ids)
        recorder.completion.seed = sample_seed(admitted.sampling.seed, index)

    @property
    def completion(self) -> Completion:
        return self._recorder.completion

    def empty(self) -> Completion:
        return self._recorder.finish("length", self._prompt_tokens, 0)

    def take(self, event: Event) -> bool:
        """Whether a stop string has ended it. Raises the error that ended the request."""
        match event:
            case Emitted():
                text, _ = self._stream.push([event.token_id])
                listed = [event.alternatives] if event.alternatives else []
                self._recorder.add(text, [event.token_id], [event.logprob], listed)
                if self._stream.stopped is not None:
                    self._recorder.finish("stop", self._prompt_tokens, len(self.completion.token_ids))
            case Finished() if not self._recorder.done:
                self._recorder.add(self._stream.flush())
                reason = event.reason if self._stream.stopped is None else "stop"
                self._recorder.finish(reason, event.prompt_tokens, event.completion_tokens)
            case Failed():
                raise event.error
        self.completion.stop = self._stream.stopped
        return self._stream.stopped is not None


def _run(engine: Engine, admitted: Admitted, samples: list[_Local]) -> list[Completion]:
    by_id = {sample.id: sample for sample in samples}
    for sample, request in zip(samples, sample_requests(admitted), strict=True):
        engine.submit(dataclasses.replace(request, request_id=sample.id))
    while not engine.idle:
        for event in engine.step():
            if by_id[event.request_id].take(event):
                engine.abort(event.request_id)
    return [sample.completion for sample in samples]
