"""Completions for a person to read as they grow, or for a program as JSON; of a gateway's stream."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

from cluster.cli.client import Client, connect
from cluster.errors import MoemeshError
from cluster.gateway import admission, messages
from cluster.types import Alternatives
from protos import generation_pb2 as pb

REASONS: dict[int, str] = {number: reason for reason, number in messages.REASONS.items()}
Clock = Callable[[], float]


@dataclass
class Completion:
    """ttft_ms: from the request to the first token; tokens_per_s: all tokens over the whole time; stop: the
    stop string that ended it."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    finish_reason: str = ""
    stop: str | None = None
    tier: str = admission.TIER_EXACT
    ttft_ms: float = 0.0
    tokens_per_s: float = 0.0
    seed: int = 0
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)

    def to_dict(self, logprobs: bool = False) -> dict[str, Any]:
        """logprobs: with log-probabilities and alternatives."""
        found = dict(vars(self))
        if self.stop is None:
            del found["stop"]
        if not logprobs:
            del found["logprobs"], found["alternatives"]
        return found


class Recorder:
    """Collects a completion and passes its text on as it comes. out: None keeps it quiet."""

    def __init__(self, out: TextIO | None, clock: Clock = time.monotonic) -> None:
        self.completion = Completion()
        self.done = False
        self._out = out
        self._clock = clock
        self._began = clock()
        self._first = 0.0

    def add(
        self,
        text: str,
        token_ids: Iterable[int] = (),
        logprobs: Iterable[float] = (),
        alternatives: Iterable[Alternatives] = (),
    ) -> None:
        done = self.completion
        done.token_ids.extend(token_ids)
        done.logprobs.extend(logprobs)
        done.alternatives.extend(alternatives)
        if done.token_ids and not self._first:
            self._first = self._clock()
        done.text += text
        if self._out is not None and text:
            self._out.write(text)
            self._out.flush()

    def start(self, start: pb.Start, index: int) -> None:
        self.completion.tier = start.tier
        self.completion.seed = start.sample_seeds[index] if start.sample_seeds else start.seed
        self.completion.prompt_tokens = start.prompt_tokens

    def take(self, response: pb.GenerateResponse) -> None:
        """One message of a stream, of this sample."""
        listed = [tuple(zip(place.token_ids, place.logprobs, strict=True)) for place in response.alternatives]
        self.add(response.text, response.token_ids, response.logprobs, listed)
        if response.HasField("start"):
            self.start(response.start, 0)
        if response.HasField("finish"):
            usage = response.finish.usage
            self.completion.stop = response.finish.stop if response.finish.HasField("stop") else None
            reason = REASONS.get(response.finish.reason, "unknown")
            self.finish(reason, usage.prompt_tokens, usage.completion_tokens)

    def cut(self, reason: str) -> Completion:
        """The reader has had enough: what has come so far is the completion."""
        return self.finish(reason, self.completion.prompt_tokens, len(self.completion.token_ids))

    def finish(self, reason: str, prompt_tokens: int, completion_tokens: int) -> Completion:
        done = self.completion
        seconds = self._clock() - self._began
        done.finish_reason = reason
        done.prompt_tokens, done.completion_tokens = prompt_tokens, completion_tokens
        done.ttft_ms = 1e3 * (self._first - self._began) if done.token_ids else 0.0
        done.tokens_per_s = completion_tokens / seconds if seconds > 0 else 0.0
        self.done = True
        return done


def recorders(samples: int, out: TextIO | None) -> list[Recorder]:
    """One a sample. Only a single one is written as it grows: texts of several would mix."""
    return [Recorder(out if samples == 1 else None) for _ in range(samples)]


def show(completions: Sequence[Completion], out: TextIO) -> None:
    """Several completions, one under the other."""
    for number, completion in enumerate(completions):
        out.write(f"[{number}] {completion.text}\n")


def remote_completions(client: Client, request: pb.GenerateRequest, out: TextIO | None) -> list[Completion]:
    """One a sample. Raises MoemeshError; what came before it of a single one has been written to `out`."""
    found = recorders(max(request.sampling.n, 1), out)
    for response in client.generate(request):
        if response.HasField("start"):
            for index, recorder in enumerate(found):
                recorder.start(response.start, index)
        else:
            found[response.index].take(response)
    if not all(recorder.done for recorder in found):
        raise MoemeshError("the gateway ended the stream without a last message")
    return [recorder.completion for recorder in found]


def stream_completion(address: str, prompt: str, max_tokens: int, out: TextIO) -> Completion:
    """A greedy completion from the gateway at `address`, written to `out` as it comes."""
    request = pb.GenerateRequest(text=prompt, sampling=pb.Sampling(max_tokens=max_tokens))
    with connect(address) as client:
        return remote_completions(client, request, out)[0]
