"""The command line as a client of one or several gateways: where they are, what they ask for, and how a call
goes on at the next one when a gateway is lost (docs/clients.md, "When a stream breaks")."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc

from cluster.cli.calls import Gateway
from cluster.config import GatewayConfig
from cluster.errors import ConfigError, MoemeshError, Unavailable
from cluster.fleet.folder import Folder
from cluster.retry import ELSEWHERE, NEXT, POLICY, Patience, Policy
from protos import generation_pb2 as pb

SYSTEM = "system"
OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    # A gateway that is frozen, or out of reach, is noticed within 20 s; one that is back, within a second.
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

Request = TypeVar("Request", pb.GenerateRequest, pb.ChatRequest)
Answer = TypeVar("Answer")
Responses = Generator[pb.GenerateResponse, None, None]


def default_address() -> str:
    """Of the gateways of the cluster that `moemesh up` started, else where one listens by default."""
    record = Folder().read()
    if record is not None and record.entrances:
        return ",".join(one.grpc for one in record.entrances)
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
            return grpc.insecure_channel(address, options=OPTIONS)
        if bool(self.certificate) != bool(self.key):
            raise ConfigError("--client-cert and --client-key go together")
        credentials = grpc.ssl_channel_credentials(
            root_certificates=None if self.ca == SYSTEM else _pem(self.ca),
            private_key=_pem(self.key) if self.key else None,
            certificate_chain=_pem(self.certificate) if self.certificate else None,
        )
        return grpc.secure_channel(address, credentials, options=OPTIONS)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()


def _pem(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give a PEM file") from None


class Client:
    """One cluster, through whichever of its gateways answers. Every method raises MoemeshError.

    A call that gets UNAVAILABLE before its first token is made again at each other gateway, once. A stream
    that breaks later goes on at the next one, with no token lost or repeated, until `policy` gives up, or
    every gateway in a row has said that it serves another model; one of several samples cannot, and fails.
    """

    def __init__(
        self,
        gateways: Sequence[Gateway],
        policy: Policy = POLICY,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """gateways: the one to be called first; reordered, so that the last one that answered is."""
        self._gateways = deque(gateways)
        self._policy, self._clock, self._sleep = policy, clock, sleep

    @property
    def address(self) -> str:
        """Of the gateway that is called first."""
        return self._gateways[0].address

    def generate(self, request: pb.GenerateRequest) -> Responses:
        """Closing the iterator before its end cancels the request."""
        return self._stream(request, Gateway.generate)

    def chat(self, request: pb.ChatRequest) -> Responses:
        """As `generate`."""
        return self._stream(request, Gateway.chat)

    def score(self, request: pb.ScoreRequest) -> pb.ScoreResponse:
        return self._once_each(lambda gateway: gateway.score(request))

    def embed(self, request: pb.EmbedRequest) -> pb.EmbedResponse:
        return self._once_each(lambda gateway: gateway.embed(request))

    def tokenize(self, request: pb.TokenizeRequest) -> pb.TokenizeResponse:
        return self._once_each(lambda gateway: gateway.tokenize(request))

    def _once_each(self, call: Callable[[Gateway], Answer]) -> Answer:
        for left in reversed(range(len(self._gateways))):
            try:
                return call(self._gateways[0])
            except MoemeshError as error:
                if error.code not in NEXT or not left:
                    raise
                self._gateways.rotate(-1)
        raise AssertionError("there is a gateway")

    def _stream(self, request: Request, call: Callable[[Gateway, Request], Responses]) -> Responses:
        received = Received(len(self._gateways), Patience.new(self._clock(), self._policy))
        while True:
            try:
                yield from self._part(request, call, received)
                return
            except MoemeshError as error:
                if not received.may_go_on(error, request.sampling.n, self._clock()):
                    raise
            self._sleep(received.patience.pause_s)
            received.patience = received.patience.longer()
            self._gateways.rotate(-1)

    def _part(
        self, request: Request, call: Callable[[Gateway, Request], Responses], received: Received
    ) -> Responses:
        """One call, from the first token that is missing. Raises Unavailable if it is over before its end."""
        received.calls += 1
        with closing(call(self._gateways[0], received.next(request))) as responses:
            for response in responses:
                received.take(response, self._clock())
                yield response
        if not received.ended and request.sampling.n <= 1:
            raise Unavailable(f"the gateway at {self._gateways[0].address} ended a stream before its end")


@dataclass
class Received:
    """Of one request, over all its calls. gateways: how many there are. calls: made without a token. others:
    so many in a row were answered by gateways of another model. ids: that came. start: of the last stream
    that told one."""

    gateways: int
    patience: Patience
    calls: int = 0
    others: int = 0
    ids: list[int] = field(default_factory=list)
    ended: bool = False
    start: pb.Start | None = None

    def next(self, request: Request) -> Request:
        """What to ask for now: the rest, under the name and with the seed that it began with."""
        again = type(request)()
        again.CopyFrom(request)
        if self.ids:
            assert self.start is not None, "a stream begins with it"
            again.request_id = self.start.request_id
            again.resume_from = request.resume_from + len(self.ids)
            if len(request.resumed_ids) == request.resume_from:  # all before these are known, too
                again.resumed_ids.extend(self.ids)
            again.sampling.seed = self.start.seed
            again.weights = self.start.weights
        return again

    def take(self, response: pb.GenerateResponse, now: float) -> None:
        if response.HasField("start"):
            self.start = response.start
        if response.token_ids:
            self.ids += response.token_ids
            self.calls = self.others = 0
            self.patience = Patience.new(now, self.patience.policy)
        self.ended = self.ended or response.HasField("finish")

    def may_go_on(self, error: MoemeshError, samples: int, now: float) -> bool:
        """samples: as in pb.Sampling.n. What a client has of several cannot be told in a request."""
        self.others = self.others + 1 if error.code in ELSEWHERE else 0
        if error.code not in NEXT or (self.ids and samples > 1):
            return False
        if self.others >= self.gateways:
            return False
        return not self.patience.tired(now) if self.ids else self.calls < self.gateways


NO_ACCESS = Access()


@contextmanager
def connect(address: str | Sequence[str] | None = None, access: Access = NO_ACCESS) -> Iterator[Client]:
    """address: "host:port" of one gateway or, with commas, of several; or several of these; nothing for
    `default_address()`. Connects with the first call. Raises ConfigError."""
    given = address if isinstance(address, str) else ",".join(address or ())
    places = [each.strip() for each in (given or default_address()).split(",") if each.strip()]
    if not places:
        raise ConfigError(f"--address {given} has no HOST:PORT")
    with ExitStack() as stack:
        channels = [stack.enter_context(access.channel(place)) for place in places]
        yield Client([Gateway(*each, access.metadata) for each in zip(places, channels, strict=True)])
