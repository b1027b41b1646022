"""Our own dialect over plain grpcio: what other clients' answers are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc

from protos import generation_pb2 as pb
from protos import generation_pb2_grpc


@dataclass(frozen=True)
class Text:
    """reason: as the proto names it, without its prefix, in lower case."""

    text: str
    token_ids: list[int]
    prompt_tokens: int
    reason: str
    logprob: float


@dataclass(frozen=True)
class Served:
    """A running gateway. grpc, http: host:port; model: its name."""

    grpc: str
    http: str
    model: str
    stub: generation_pb2_grpc.GenerationStub

    @staticmethod
    @contextmanager
    def at(summary: dict[str, Any]) -> Iterator[Served]:
        """summary: what `moemesh up --json` printed."""
        with grpc.insecure_channel(summary["grpc"]) as channel:
            stub = generation_pb2_grpc.GenerationStub(channel)
            yield Served(summary["grpc"], summary["http"].split("//")[1], summary["model"], stub)

    def generate(self, text: str, max_tokens: int, **sampling: Any) -> Text:
        asked = pb.GenerateRequest(text=text, sampling=pb.Sampling(max_tokens=max_tokens, **sampling))
        parts = list(self.stub.Generate(asked, timeout=60))
        finish = parts[-1].finish
        return Text(
            "".join(part.text for part in parts),
            [token for part in parts for token in part.token_ids],
            finish.usage.prompt_tokens,
            pb.FinishReason.Name(finish.reason).removeprefix("FINISH_REASON_").lower(),
            sum(value for part in parts for value in part.logprobs),
        )
