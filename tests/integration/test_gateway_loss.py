"""A gateway is killed: its clients go on at another one, by the request's name and the tokens they have."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import grpc
import pytest

from cluster.cli.client import connect
from cluster.cli.completion import Recorder, remote_completions
from cluster.errors import MoemeshError
from cluster.fleet.children import family
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support.fake_router import FakeRouter
from support.gateways import gateway, generation_stub, request, serve, wait_until

TOKENS, READ = 40, 7
TEXT = "añ漢🙂"


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_a_stream_goes_on_at_another_gateway(temperature: float) -> None:
    """A sampled request without a seed is told the one that was drawn, before its first token."""

    def asked(**fields: object) -> pb.GenerateRequest:
        return request(TEXT, max_tokens=TOKENS, temperature=temperature, request_id="mine", **fields)

    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as other,
        family(serve, [({"r0": router.address},)]) as (child,),
        grpc.insecure_channel(child.word) as channel,
    ):
        stream = generation_pb2_grpc.GenerationStub(channel).Generate(asked())
        seed = next(stream).start.seed
        wait_until(lambda: len(router.running) == 1, "the request")
        for _ in range(READ):
            router.step()
        text, ids = "", list[int]()
        while len(ids) < READ:
            part = next(stream)
            text, ids = text + part.text, [*ids, *part.token_ids]
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: not router.running, "the router to forget what the dead gateway asked for")
        router.resume()
        with generation_stub(other) as stub:
            for part in stub.Generate(asked(resume_from=READ, seed=seed)):
                text, ids = text + part.text, [*ids, *part.token_ids]
            undisturbed = list(stub.Generate(asked(seed=seed)))
        assert ids == [token for part in undisturbed for token in part.token_ids]
        assert text == "".join(part.text for part in undisturbed)


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])
def test_our_own_client_goes_on_by_itself(temperature: float) -> None:
    """What it writes is what it writes undisturbed, though its gateway dies in the middle."""
    asked = request(TEXT, max_tokens=TOKENS, temperature=temperature, seed=3)
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as other,
        family(serve, [({"r0": router.address},)]) as (child,),
        connect([child.word, other.address]) as client,
        stepping(router) as resume,
    ):
        out = io.StringIO()
        recorder = Recorder(out)
        for response in client.generate(asked):
            recorder.take(response)
            if len(recorder.completion.token_ids) == READ:
                os.kill(child.pid, signal.SIGKILL)
                resume()
        assert len(router.counts.submitted) == 2, "it was asked for again"
        with connect(other.address) as undisturbed:
            (whole,) = remote_completions(undisturbed, asked, None)
    assert recorder.completion.token_ids == whole.token_ids
    assert out.getvalue() == whole.text


@contextmanager
def stepping(router: FakeRouter) -> Iterator[Callable[[], None]]:
    """A token now and then, until it is told to resume its own pace."""
    enough = threading.Event()

    def step() -> None:
        while not enough.wait(0.01):
            with suppress(MoemeshError):  # its gateway has died
                router.step()
        router.resume()

    thread = threading.Thread(target=step)
    thread.start()
    try:
        yield enough.set
    finally:
        enough.set()
        thread.join()
