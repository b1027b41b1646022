"""Calls of one gateway, with its errors as our own."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from cluster import errors
from cluster.errors import MoemeshError, Unavailable, error_from_wire
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc


class Gateway:
    """Methods of moemesh.v1.Generation. Every one raises MoemeshError in place of grpc.RpcError."""

    def __init__(self, address: str, channel: grpc.Channel, metadata: tuple[tuple[str, str], ...]) -> None:
        self.address = address
        self._metadata = metadata
        self._stub = generation_pb2_grpc.GenerationStub(channel)

    def generate(self, request: pb.GenerateRequest) -> Generator[pb.GenerateResponse, None, None]:
        """Closing the iterator before its end cancels the request."""
        return self._stream(self._stub.Generate(request, metadata=self._metadata))

    def chat(self, request: pb.ChatRequest) -> Generator[pb.GenerateResponse, None, None]:
        """As `generate`."""
        return self._stream(self._stub.Chat(request, metadata=self._metadata))

    def _stream(self, call: Any) -> Generator[pb.GenerateResponse, None, None]:
        try:
            with self._errors():
                yield from call
        finally:
            call.cancel()

    def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        with self._errors():
            return self._stub.Score(request, metadata=self._metadata)

    def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        with self._errors():
            return self._stub.Embed(request, metadata=self._metadata)

    def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        with self._errors():
            return self._stub.Tokenize(request, metadata=self._metadata)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise error_of(error, self.address) from None


def error_of(error: grpc.RpcError, address: str) -> MoemeshError:
    """Our error behind a failed call; one without our details did not come from a gateway of ours."""
    code, details = error.code(), str(error.details()).replace("\n", " ")
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    for packed in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            return error_from_wire(info.reason, details)
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(
            f"no gateway answers at {address}; start a cluster with `moemesh up`, or give --address "
            "HOST:PORT, and --ca for one with TLS"
        )
    return _kind_of(code)(f"the gateway at {address} answered {code.name}: {details}")


def _kind_of(code: grpc.StatusCode) -> type[MoemeshError]:
    """The most general of our errors with this code."""
    for kind in (errors.InvalidRequest, errors.UnknownModel, errors.RequestAborted, errors.ClusterError):
        if kind.code == code.name:
            return kind
    return MoemeshError
