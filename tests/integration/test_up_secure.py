"""One real cluster with everything on that keeps strangers out: TLS, keys, sealed links; and with traces. The
tests run in order and share it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography import x509

from cluster.config import WireSecurity
from cluster.dispatch.client import ControlClient
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import ProtocolError
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support.clusters import Leaving, Moemesh, kill, wait_until
from support.engines import tiny_library
from support.otlp import Receiver, receiving

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

PROMPT, TOKENS = "abc", 8
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = f"00-{TRACE}-00f067aa0ba902b7-01"


@dataclass
class Secured:
    """A cluster that is up, and what its clients need."""

    moemesh: Moemesh
    library: Path
    pki: Path
    key: str
    received: Receiver
    summary: dict[str, Any]

    @property
    def ca(self) -> bytes:
        return (self.pki / "ca.pem").read_bytes()

    @property
    def options(self) -> tuple[str, ...]:
        """Of the command line."""
        return ("--ca", str(self.pki / "ca.pem"), "--api-key", self.key)

    @contextmanager
    def stub(self, ca: bytes | None = None) -> Iterator[generation_pb2_grpc.GenerationStub]:
        credentials = grpc.ssl_channel_credentials(self.ca if ca is None else ca)
        with grpc.secure_channel(self.summary["grpc"], credentials) as channel:
            yield generation_pb2_grpc.GenerationStub(channel)

    def generate(self, stub: generation_pb2_grpc.GenerationStub, **metadata: str) -> list[int]:
        asked = pb.GenerateRequest(text=PROMPT, sampling=pb.Sampling(max_tokens=TOKENS))
        given = {"authorization": f"Bearer {self.key}"} | metadata
        parts = list(stub.Generate(asked, metadata=tuple(given.items()), timeout=60))
        return [token for part in parts for token in part.token_ids]

    def certificate(self) -> x509.Certificate:
        """What a new connection is shown."""
        host, _, port = self.summary["grpc"].rpartition(":")
        pem = ssl.get_server_certificate((host, int(port)), ca_certs=str(self.pki / "ca.pem"))
        return x509.load_pem_x509_certificate(pem.encode())


def issue(moemesh: Moemesh, pki: Path) -> None:
    done = moemesh.run("keys", "certificate", str(pki), "gateway", "--host", "127.0.0.1")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    root = tmp_path_factory.mktemp("secure")
    library, pki, keys = tiny_library(root, "qwen3-dense-between"), root / "pki", root / "keys.json"
    with receiving() as (received, endpoint):
        moemesh = Moemesh(root / "state", "--model", str(library.path), "--nodes", "2")
        assert moemesh.run("keys", "ca", str(pki)).returncode == 0
        issue(moemesh, pki)
        key = moemesh.json("keys", "create", "ann", "--scope", "infer", "--file", str(keys))["key"]
        tls = ("--tls-cert", str(pki / "gateway.pem"), "--tls-key", str(pki / "gateway.key"))
        wire = ("--wire-security", "always")
        summary = moemesh.up(*tls, *wire, "--keys", str(keys), "--otlp", endpoint)
        yield Secured(moemesh, library.path, pki, key, received, summary)
        moemesh.stop()


@pytest.fixture(scope="module")
def tokens(secured: Secured) -> list[int]:
    """Of one process without any of it: the same bits."""
    local = ("--local", "--model", str(secured.library))
    return secured.moemesh.json("generate", PROMPT, *local, "--max-tokens", str(TOKENS))["token_ids"]


def test_a_client_with_the_authority_and_a_key_is_served(secured: Secured, tokens: list[int]) -> None:
    with secured.stub() as stub:
        assert secured.generate(stub, traceparent=SAMPLED) == tokens
    base, context = secured.summary["http"], ssl.create_default_context(cadata=secured.ca.decode())
    assert base.startswith("https://")
    body = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    headers = {"authorization": f"Bearer {secured.key}"}
    with httpx.Client(base_url=base, verify=context, timeout=60) as web:
        answer = web.post("/v1/completions", json=body, headers=headers)
        assert answer.json()["usage"]["completion_tokens"] == TOKENS
        assert web.post("/v1/completions", json=body).status_code == 401
        assert web.get("/metrics", headers=headers).status_code == 403, "the key may infer, not observe"
        assert web.get("/ready").status_code == 200


def test_the_command_line_is_a_client_too(secured: Secured, tokens: list[int]) -> None:
    asked = ("generate", PROMPT, "--max-tokens", str(TOKENS))
    assert secured.moemesh.json(*asked, *secured.options)["token_ids"] == tokens
    done = secured.moemesh.run(*asked, *secured.options[:2], "--json")
    assert json.loads(done.stdout)["error"]["code"] == "UNAUTHENTICATED"


def test_without_a_key_or_without_tls_nobody_is(secured: Secured) -> None:
    with secured.stub() as stub, pytest.raises(grpc.RpcError) as caught:
        secured.generate(stub, authorization="Bearer mm_00000000_" + "a" * 43)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with grpc.insecure_channel(secured.summary["grpc"]) as channel, pytest.raises(grpc.RpcError) as caught:
        secured.generate(generation_pb2_grpc.GenerationStub(channel))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(httpx.HTTPError):
        httpx.get(secured.summary["http"].replace("https", "http") + "/health", timeout=60)


def test_every_port_of_the_cluster_seals_and_takes_no_stranger(secured: Secured) -> None:
    """Also to who would do without, on loopback."""
    folder = secured.moemesh.folder
    members = secured.moemesh.members()
    addresses = [members[name]["address"] for name in ("node-0", "node-1", "router-0")]
    for address in (*addresses, folder.require().controller):
        easy = Identity("tool", "t", key=folder.cluster_key(), security=WireSecurity.auto)
        with ControlClient(address, identity=easy) as client:
            assert isinstance(client.call(Kind.STATUS, {}).header, dict)
            assert client._connection is not None
            assert client._connection._sealer is not None
        with (
            ControlClient(address, identity=Identity("tool", "t", key=b"")) as stranger,
            pytest.raises(ProtocolError, match="cluster's key"),
        ):
            stranger.call(Kind.STATUS, {})
    assert all(node["stats"]["links_tampered_with"] == 0 for node in secured.moemesh.json("status")["nodes"])


def test_the_request_s_trace_has_gateway_router_and_nodes(secured: Secured) -> None:
    names = {"request", "gateway.queue", "router.queue", "router.prefill", "router.decode"}

    def spans() -> dict[str, tuple[str, Any]]:
        return {s.name: (role, s) for role, s in list(secured.received.spans) if s.trace_id.hex() == TRACE}

    wait_until(lambda: names <= set(spans()), "the spans of the request")
    found = spans()
    assert {role for role, _ in found.values()} == {"gateway", "router"}
    decode = {each.key: each.value for each in found["router.decode"][1].attributes}
    nodes = [one.string_value for one in decode["moemesh.nodes"].array_value.values]
    assert set(nodes) <= {"node-0", "node-1"}
    assert nodes
    assert all(one.double_value >= 0 for one in decode["moemesh.node_service_s"].array_value.values)


def test_a_certificate_is_replaced_while_it_serves(secured: Secured, tokens: list[int]) -> None:
    before = secured.certificate()
    with secured.stub() as stub:
        assert secured.generate(stub) == tokens
        issue(secured.moemesh, secured.pki)
        after = secured.certificate()
        assert after.serial_number != before.serial_number
        assert secured.generate(stub) == tokens, "on the connection that was there before"
    with secured.stub() as stub:
        assert secured.generate(stub) == tokens


def test_another_authority_s_certificate_is_not_taken_by_clients(secured: Secured, tmp_path: Path) -> None:
    assert secured.moemesh.run("keys", "ca", str(tmp_path / "pki")).returncode == 0
    other = (tmp_path / "pki" / "ca.pem").read_bytes()
    with secured.stub(other) as stub, pytest.raises(grpc.RpcError) as caught:
        secured.generate(stub)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_killed_node_comes_back_behind_the_seal(secured: Secured, tokens: list[int]) -> None:
    moemesh = secured.moemesh
    before = moemesh.members()["node-1"]["incarnation"]
    kill(moemesh.role_pid("node-1") or 0)
    wait_until(
        lambda: (node := moemesh.members().get("node-1")) and node["ready"] and node["incarnation"] > before,
        "node-1 comes back",
    )
    with secured.stub() as stub:
        assert secured.generate(stub) == tokens


def test_down_leaves_nothing(secured: Secured) -> None:
    leaving = Leaving(secured.moemesh)
    leaving.look()
    assert secured.moemesh.json("down")["stopped"]
    leaving.check()
