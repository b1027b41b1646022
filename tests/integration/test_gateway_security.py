"""TLS, client certificates, rotation and API keys on both servers of a gateway, with real handshakes."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.cli.client import Access, connect
from cluster.config import GatewayConfig, TlsFiles
from cluster.errors import ClusterError, ConfigError, Unauthenticated, Unavailable
from cluster.gateway.security import keys
from cluster.gateway.security.keys import Scope
from cluster.gateway.service import GatewayService, check_access
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support.fake_router import FakeRouter
from support.gateways import gateway, request, wait_until
from support.http import web

WHEN = "2026-11-22T10:00:00+00:00"
BODY = {"prompt": "abc", "max_tokens": 3, "temperature": 0}


@dataclasses.dataclass
class Files:
    """PEM files of one test: the server's, and of a client."""

    folder: Path
    authority: trustme.CA = dataclasses.field(default_factory=trustme.CA)

    def __post_init__(self) -> None:
        self.ca = self.folder / "ca.pem"
        self.tls = TlsFiles(str(self.folder / "server.pem"), str(self.folder / "server.key"))
        self.issue()

    def issue(self, authority: trustme.CA | None = None) -> None:
        """A new certificate for the server, and one for a client, of this authority or another."""
        signer = authority or self.authority
        signer.cert_pem.write_to_path(str(self.ca))
        server = signer.issue_cert("localhost", "127.0.0.1")
        Path(self.tls.key).write_bytes(server.private_key_pem.bytes())
        Path(self.tls.certificate).write_bytes(b"".join(pem.bytes() for pem in server.cert_chain_pems))
        client = signer.issue_cert("client.example")
        (self.folder / "client.key").write_bytes(client.private_key_pem.bytes())
        (self.folder / "client.pem").write_bytes(b"".join(pem.bytes() for pem in client.cert_chain_pems))

    def access(self, with_client: bool = False, api_key: str = "") -> Access:
        shown = (
            (str(self.folder / "client.pem"), str(self.folder / "client.key")) if with_client else ("", "")
        )
        return Access(api_key, str(self.ca), *shown)

    def context(self, with_client: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.ca))
        if with_client:
            context.load_cert_chain(self.folder / "client.pem", self.folder / "client.key")
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextmanager
def secured(**config: Any) -> Iterator[tuple[GatewayService, FakeRouter]]:
    with FakeRouter() as router, gateway({"r0": router.address}, http_port=0, **config) as service:
        wait_until(lambda: service.ready, "the gateway to be ready")
        yield service, router


def generate(service: GatewayService, access: Access) -> str:
    with connect(service.address, access) as client:
        return "".join(part.text for part in client.generate(request("abc", max_tokens=3)))


def complete(service: GatewayService, context: ssl.SSLContext, **headers: str) -> httpx.Response:
    with httpx.Client(verify=context, headers=headers) as client:
        return client.post(f"https://{service.http_address}/v1/completions", json=BODY)


def test_tls_on_both_servers(files: Files) -> None:
    with secured(tls=files.tls) as (service, _):
        assert generate(service, files.access()) == "abc"
        assert complete(service, files.context()).json()["choices"][0]["text"] == "abc"
        with pytest.raises(Unavailable, match="--ca"):
            generate(service, Access())
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"http://{service.http_address}/health")


def test_clients_must_show_a_certificate_where_it_is_asked_for(files: Files) -> None:
    tls = dataclasses.replace(files.tls, client_ca=str(files.ca))
    with secured(tls=tls) as (service, _):
        assert generate(service, files.access(with_client=True)) == "abc"
        assert complete(service, files.context(with_client=True)).status_code == 200
        with pytest.raises(Unavailable):
            generate(service, files.access())
        with pytest.raises(httpx.HTTPError):
            complete(service, files.context())


def test_certificates_are_replaced_while_it_serves(files: Files) -> None:
    """A new authority on both sides: clients of the old one are refused, those of the new one served."""
    tls = dataclasses.replace(files.tls, client_ca=str(files.ca))
    with secured(tls=tls) as (service, _):
        before, old = files.access(with_client=True), files.context(with_client=True)
        channel = before.channel(service.address)
        stub = generation_pb2_grpc.GenerationStub(channel)
        assert list(stub.Generate(request("abc", max_tokens=2)))[-1].HasField("finish")
        files.issue(trustme.CA())
        assert generate(service, files.access(with_client=True)) == "abc"
        assert complete(service, files.context(with_client=True)).status_code == 200
        with pytest.raises(httpx.HTTPError):
            complete(service, old)
        # A connection that exists keeps what it began with.
        assert list(stub.Generate(request("abc", max_tokens=2)))[-1].HasField("finish")
        channel.close()


def test_half_replaced_files_leave_the_old_ones_in_force(files: Files) -> None:
    with secured(tls=files.tls) as (service, _):
        access, context = files.access(), files.context()
        whole = Path(files.tls.key).read_bytes()
        Path(files.tls.key).write_bytes(whole[: len(whole) // 2])
        assert generate(service, access) == "abc"
        assert complete(service, context).status_code == 200


def test_what_does_not_belong_together_is_refused_at_the_start(files: Files, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = Files(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"server\.pem"):
        check_access(GatewayConfig(tls=TlsFiles(files.tls.certificate, other.tls.key)))
    with pytest.raises(ConfigError, match=r"nothing\.pem"):
        check_access(
            GatewayConfig(tls=dataclasses.replace(files.tls, client_ca=str(tmp_path / "nothing.pem")))
        )
    with pytest.raises(ConfigError, match="moemesh keys create"):
        check_access(GatewayConfig(keys=str(tmp_path / "none.json")))


def test_beyond_loopback_needs_tls_and_keys(files: Files, tmp_path: Path) -> None:
    store = tmp_path / "keys.json"
    keys.write(store, [])
    for given in ({"tls": files.tls}, {"keys": str(store)}, {}):
        for host in ({"host": "0.0.0.0"}, {"http_host": "0.0.0.0", "http_port": 0}):
            with pytest.raises(ClusterError, match="--insecure"):
                check_access(GatewayConfig(**host, **given))
    check_access(GatewayConfig(host="0.0.0.0", tls=files.tls, keys=str(store)))


class KeyRing:
    """A file of keys and the keys in it, by scope."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.records: list[keys.Key] = []
        self.of = {scope: self.add(scope) for scope in Scope}

    def add(self, scope: Scope, **limits: int) -> str:
        key, record = keys.create(scope, [scope], WHEN, **limits)
        self.records.append(record)
        keys.write(Path(self.path), self.records)
        return key

    def revoke(self, scope: Scope) -> None:
        self.records = [
            dataclasses.replace(each, revoked=WHEN) if each.name == scope else each for each in self.records
        ]
        keys.write(Path(self.path), self.records)


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "keys.json")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def ask(service: GatewayService, path: str, key: str = "") -> int:
    with httpx.Client(base_url=f"http://{service.http_address}", verify=False, headers=bearer(key)) as client:
        answer = client.post(path, json=BODY) if path.startswith("/v1/c") else client.get(path)
        return answer.status_code


def test_every_route_asks_for_its_scope(ring: KeyRing) -> None:
    with secured(keys=ring.path) as (service, _):
        seen = {
            path: [ask(service, path, key) for key in ("", "mm_x", *ring.of.values())]
            for path in ("/v1/completions", "/v1/models", "/metrics", "/health", "/ready", "/nope")
        }
    assert list(ring.of) == [Scope.infer, Scope.observe, Scope.admin]
    assert seen == {
        "/v1/completions": [401, 401, 200, 403, 403],
        "/v1/models": [401, 401, 200, 200, 200],
        "/metrics": [401, 401, 403, 200, 403],
        "/health": [200] * 5,
        "/ready": [200] * 5,
        "/nope": [401, 401, 403, 403, 404],
    }


def test_grpc_asks_for_the_same(ring: KeyRing) -> None:
    with secured(keys=ring.path) as (service, _), grpc.insecure_channel(service.address) as channel:
        assert generate(service, Access(ring.of[Scope.infer])) == "abc"
        with pytest.raises(Unauthenticated, match="API key"):
            generate(service, Access())
        stub = generation_pb2_grpc.GenerationStub(channel)
        for key, code in (("", "UNAUTHENTICATED"), (ring.of[Scope.observe], "PERMISSION_DENIED")):
            metadata = tuple(bearer(key).items())
            for call in (
                lambda metadata=metadata: list(stub.Generate(request(), metadata=metadata)),
                lambda metadata=metadata: stub.Tokenize(pb.TokenizeRequest(text="a"), metadata=metadata),
            ):
                with pytest.raises(grpc.RpcError) as caught:
                    call()
                assert caught.value.code().name == code
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert check.status == health_pb2.HealthCheckResponse.SERVING


def test_health_asks_for_a_key_when_told(ring: KeyRing) -> None:
    with secured(keys=ring.path, guard_health=True) as (service, _):
        assert ask(service, "/health") == 401
        assert ask(service, "/ready", ring.of[Scope.observe]) == 200
        with grpc.insecure_channel(service.address) as channel, pytest.raises(grpc.RpcError) as caught:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_revoked_key_is_refused_at_once(ring: KeyRing) -> None:
    with secured(keys=ring.path) as (service, _):
        key = ring.of[Scope.infer]
        assert ask(service, "/v1/completions", key) == 200
        ring.revoke(Scope.infer)
        assert ask(service, "/v1/completions", key) == 401


def test_a_keys_own_limits_have_their_hints(ring: KeyRing) -> None:
    key = ring.add(Scope.infer, requests_per_minute=1)
    with secured(keys=ring.path) as (service, _), grpc.insecure_channel(service.address) as channel:
        assert ask(service, "/v1/completions", key) == 200
        with web(service, headers=bearer(key)) as client:
            refused = client.post("/v1/completions", json=BODY)
        assert refused.status_code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 60
        stub = generation_pb2_grpc.GenerationStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(request(), metadata=tuple(bearer(key).items())))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        packed = status_pb2.Status.FromString(
            dict(caught.value.trailing_metadata())["grpc-status-details-bin"]
        )
        retry = error_details_pb2.RetryInfo()
        assert any(detail.Unpack(retry) for detail in packed.details)
        assert 0 < retry.retry_delay.ToMilliseconds() <= 60_000
        assert ask(service, "/v1/completions", ring.of[Scope.infer]) == 200


def test_a_key_may_run_only_so_many_at_once(ring: KeyRing) -> None:
    key = ring.add(Scope.infer, concurrent=1)
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}, keys=ring.path) as service,
        connect(service.address, Access(key)) as client,
    ):
        first = client.generate(request(max_tokens=3))
        next(first)
        with pytest.raises(Exception, match="1 requests at once"):
            list(client.generate(request(max_tokens=3)))
        router.resume()
        list(first)
        wait_until(lambda: service.stats()["outstanding"] == 0, "the first to end")
        list(client.generate(request(max_tokens=1)))


def test_nobody_aborts_what_another_key_asked_for(ring: KeyRing) -> None:
    other = ring.add(Scope.infer)
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}, keys=ring.path) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        stub = generation_pb2_grpc.GenerationStub(channel)
        mine, theirs = (tuple(bearer(key).items()) for key in (ring.of[Scope.infer], other))
        stream = stub.Generate(request(request_id="r", max_tokens=9), metadata=mine)
        wait_until(lambda: len(router.running) == 1, "the request")
        assert not stub.Abort(pb.AbortRequest(request_id="r"), metadata=theirs).aborted
        assert stub.Abort(pb.AbortRequest(request_id="r"), metadata=mine).aborted
        assert list(stream)[-1].finish.reason == pb.FINISH_REASON_ABORTED
