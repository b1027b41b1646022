"""The command line as a client of a gateway: where it is, calls, errors as our own."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from cluster import errors
from cluster.config import GatewayConfig
from cluster.errors import ConfigError, MoemeshError, Unavailable, error_from_wire
from cluster.fleet.folder import Folder
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc

SYSTEM = "system"
UNLIMITED = (("grpc.max_receive_message_length", -1),)


def default_address() -> str:
    """Of the cluster that `moemesh up` started, else where a gateway listens by default."""
    record = Folder().read()
    if record is not None and record.grpc:
        return record.grpc
    config = GatewayConfig()
    return f"{config.host}:{config.port}"


@dataclass(frozen=True)
class Access:
    """What a gateway may ask for. ca: PEM file of its authority, SYSTEM for those that the system knows, ""
    for a gateway without TLS; certificate and key: PEM files to show to it."""

    api_key: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""

    def channel(self, address: str) -> grpc.Channel:
        """Raises ConfigError for files that cannot be read or do not belong together."""
        if not self.ca:
            if self.certificate or self.key:
                raise ConfigError("--client-cert needs --ca: without TLS nobody is shown a certificate")
            return grpc.insecure_channel(address, options=UNLIMITED)
        if bool(self.certificate) != bool(self.key):
            raise ConfigError("--client-cert and --client-key go together")
        credentials = grpc.ssl_channel_credentials(
            root_certificates=None if self.ca == SYSTEM else _pem(self.ca),
            private_key=_pem(self.key) if self.key else None,
            certificate_chain=_pem(self.certificate) if self.certificate else None,
        )
        return grpc.secure_channel(address, credentials, options=UNLIMITED)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()


def _pem(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give a PEM file") from None


class Client:
    """Calls of moemesh.v1.Generation. Every method raises MoemeshError in place of grpc.RpcError."""

    def __init__(self, address: str, channel: grpc.Channel, access: Access) -> None:
        self.address = address
        self._metadata = access.metadata
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


NO_ACCESS = Access()


@contextmanager
def connect(address: str = "", access: Access = NO_ACCESS) -> Iterator[Client]:
    """address: "host:port"; "" for `default_address()`. Connects with the first call. Raises ConfigError."""
    address = address or default_address()
    with access.channel(address) as channel:
        yield Client(address, channel, access)


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
