"""One completion for a person to read as it grows, or for a program as JSON; remote or in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TextIO

from cluster.cli.client import Client, connect
from cluster.cli.local import local_engine, run
from cluster.config import EngineConfig
from cluster.errors import MoemeshError
from cluster.gateway import admission, messages
from cluster.gateway.admission import Limits, Wishes
from cluster.gateway.admit import draw_seed
from cluster.library.bundled import open_model
from cluster.model.tokenizer import StreamDecoder
from cluster.types import Emitted, EngineRequest, Event, Failed, Finished, RequestId
from protos import generation_pb2 as pb

REASONS: dict[int, str] = {number: reason for reason, number in messages.REASONS.items()}
Clock = Callable[[], float]


@dataclass
class Completion:
    """ttft_ms: from the request to the first token; tokens_per_s: all tokens over the whole time."""

    text: str = ""
    token_ids: list[int] | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    tier: str = admission.TIER_EXACT
    ttft_ms: float = 0.0
    tokens_per_s: float = 0.0
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "token_ids": self.token_ids or []}


class Recorder:
    """Collects a completion and passes its text on as it comes. out: None keeps it quiet."""

    def __init__(self, out: TextIO | None, clock: Clock = time.monotonic) -> None:
        self.completion = Completion()
        self._ids: list[int] = []
        self._out = out
        self._clock = clock
        self._began = clock()
        self._first = 0.0

    def add(self, text: str, token_ids: Iterable[int]) -> None:
        self._ids.extend(token_ids)
        if self._ids and not self._first:
            self._first = self._clock()
        self.completion.text += text
        if self._out is not None and text:
            self._out.write(text)
            self._out.flush()

    def take(self, response: pb.GenerateResponse) -> None:
        """One message of a stream."""
        self.add(response.text, response.token_ids)
        if response.HasField("start"):
            self.completion.tier = response.start.tier
            self.completion.seed = response.start.seed
            self.completion.prompt_tokens = response.start.prompt_tokens
        if response.HasField("finish"):
            usage = response.finish.usage
            reason = REASONS.get(response.finish.reason, "unknown")
            self.finish(reason, usage.prompt_tokens, usage.completion_tokens)

    def cut(self, reason: str) -> Completion:
        """The reader has had enough: what has come so far is the completion."""
        return self.finish(reason, self.completion.prompt_tokens, len(self._ids))

    def finish(self, reason: str, prompt_tokens: int, completion_tokens: int) -> Completion:
        done = self.completion
        seconds = self._clock() - self._began
        done.token_ids = self._ids
        done.finish_reason = reason
        done.prompt_tokens, done.completion_tokens = prompt_tokens, completion_tokens
        done.ttft_ms = 1e3 * (self._first - self._began) if self._ids else 0.0
        done.tokens_per_s = completion_tokens / seconds if seconds > 0 else 0.0
        return done


def remote_completion(client: Client, request: pb.GenerateRequest, out: TextIO | None) -> Completion:
    """Raises MoemeshError; what came before it has been written to `out`."""
    recorder = Recorder(out)
    for response in client.generate(request):
        recorder.take(response)
        if response.HasField("finish"):
            return recorder.completion
    raise MoemeshError("the gateway ended the stream without a last message")


def stream_completion(address: str, prompt: str, max_tokens: int, out: TextIO) -> Completion:
    """A greedy completion from the gateway at `address`, written to `out` as it comes."""
    request = pb.GenerateRequest(text=prompt, sampling=pb.Sampling(max_tokens=max_tokens))
    with connect(address) as client:
        return remote_completion(client, request, out)


def local_completion(
    model: str,
    variant: str,
    config: EngineConfig,
    prompt: str,
    wishes: Wishes,
    out: TextIO | None,
    ready: Callable[[], None],
) -> Completion:
    """Load the model into this process and complete `prompt`. ready: called when it is loaded.

    The request is checked before anything is loaded. Raises InvalidRequest, LibraryError.
    """
    library = open_model(model)
    limits = Limits(library.spec.context, library.spec.vocab)
    tokenizer = library.tokenizer()
    admission.check_text(prompt)
    ids = admission.check_prompt(tokenizer.encode(prompt), limits)
    sampling = admission.check_sampling(wishes, len(ids), limits, draw_seed)
    if sampling.max_tokens == 0:
        return Completion(prompt_tokens=len(ids), finish_reason="length", seed=sampling.seed)
    with local_engine(library, variant, config) as engine:
        ready()
        recorder = Recorder(out)
        recorder.completion.seed = sampling.seed
        events = run(engine, EngineRequest(RequestId("local"), ids, sampling))
        return _collect(events, recorder, StreamDecoder(tokenizer))


def _collect(events: Iterator[Event], recorder: Recorder, decoder: StreamDecoder) -> Completion:
    for event in events:
        match event:
            case Emitted():
                recorder.add(decoder.push(event.token_id), [event.token_id])
            case Finished():
                recorder.add(decoder.flush(), [])
                return recorder.finish(event.reason, event.prompt_tokens, event.completion_tokens)
            case Failed():
                raise event.error
    raise MoemeshError("the engine ended without a last event")
