"""The policy of docs/clients.md for clients that know several gateways, with the code that the page has for
it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import grpc
import pytest

from cluster.fleet.children import family
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support.fake_router import FakeRouter
from support.gateways import gateway, generation_stub, request, serve, wait_until
from support.pages import block, generate_stubs

PROMPT, TOKENS, READ = "And it came to pass", 16, 5
"""Prompt and tokens are the page's."""


@pytest.mark.clients
@pytest.mark.timeout(600)
def test_the_page_s_client_goes_on_at_the_other_gateway(client_python: Path, tmp_path: Path) -> None:
    generate_stubs(client_python, tmp_path)
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as other,
        family(serve, [({"r0": router.address},)]) as (child,),
    ):
        code = block("python failover").replace("127.0.0.1:8471", child.word)
        (tmp_path / "client.py").write_text(code.replace("127.0.0.1:8473", other.address))
        client = subprocess.Popen(
            [str(client_python), "client.py"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert client.stdout is not None, "it was given a pipe"
        wait_until(lambda: len(router.running) == 1, "the request", seconds=60)
        for _ in range(READ):
            router.step()
        begun = client.stdout.read(READ).decode()
        os.kill(child.pid, signal.SIGKILL)
        router.resume()
        said, errors = client.communicate(timeout=60)
        assert client.returncode == 0, errors.decode()[-3000:]
        assert router.counts.submitted[-1].request_id == router.counts.submitted[0].request_id
        with generation_stub(other) as stub:
            undisturbed = list(stub.Generate(request(PROMPT, max_tokens=TOKENS)))
    assert begun + said.decode() == "".join(part.text for part in undisturbed)


def test_the_page_s_service_config_finds_the_gateway_that_answers() -> None:
    with FakeRouter() as router, gateway({"r0": router.address}) as service:
        options = [("grpc.service_config", block("json service-config"))]
        target = f"ipv4:127.0.0.1:1,{service.address}"
        with grpc.insecure_channel(target, options=options) as channel:
            stub = generation_pb2_grpc.GenerationStub(channel)
            scored = [stub.Score(pb.ScoreRequest(text="abc"), timeout=20).logprobs for _ in range(4)]
            parts = list(stub.Generate(request(max_tokens=3), timeout=20))
    assert {len(one) for one in scored} == {2}
    assert sum(len(part.token_ids) for part in parts) == 3
