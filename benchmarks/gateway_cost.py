"""What the gateway itself costs: CPU a token over gRPC and over HTTP's event streams, memory of idle streams.

python benchmarks/gateway_cost.py [--streams 32] [--tokens 200] [--idle 1000]

A gateway in a process of its own stands between a scripted router (tests/support/fake_router.py), which
gives every stream one token a step, and clients in this process. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from cluster.config import GatewayConfig
from cluster.gateway.service import GatewayService
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support.fake_router import FakeRouter
from support.gateways import served_model

STEP_S = 0.005
CONTEXT = 4096
MOST_TOKENS = 4000
Addresses = tuple[str, str]


def serve(router: str, pipe: Connection) -> None:
    config = GatewayConfig(port=0, http_port=0, window=4096)  # nobody waits: it is streams that are counted
    service = GatewayService(config, served_model(context=CONTEXT))
    service.start()
    service.update({"r0": router})
    while not service.ready:
        time.sleep(0.01)
    pipe.send((service.address, service.http_address))
    pipe.recv()
    service.shutdown(0.0)


async def over_grpc(addresses: Addresses, streams: int, tokens: int, opened: Callable[[], None]) -> None:
    async with grpc.aio.insecure_channel(addresses[0]) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)

        async def one() -> None:
            request = pb.GenerateRequest(text="abc", sampling=pb.Sampling(max_tokens=tokens))
            first = True
            async for _ in stub.Generate(request):
                if first:
                    opened()
                first = False

        await asyncio.gather(*(one() for _ in range(streams)))


async def over_http(addresses: Addresses, streams: int, tokens: int, opened: Callable[[], None]) -> None:
    """Plain sockets: a client library would cost this process more than the gateway costs its own."""
    host, port = addresses[1].split(":")
    body = json.dumps({"prompt": "abc", "max_tokens": tokens, "temperature": 0, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def one() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 "), answer
        opened()
        ended = b""
        while b"[DONE]" not in ended and (data := await reader.read(65536)):
            ended = (ended + data)[-32:]
        writer.close()

    await asyncio.gather(*(one() for _ in range(streams)))


def cpu_per_token(
    router: FakeRouter, process: psutil.Process, run: Callable[..., Awaitable[None]], *args: object
) -> float:
    """µs of the gateway's CPU for a token, from the first to the last."""
    addresses, streams, tokens = args
    stepping = threading.Event()

    def step() -> None:
        while not stepping.is_set():
            router.step()
            time.sleep(STEP_S)

    thread = threading.Thread(target=step)
    before = process.cpu_times()
    thread.start()
    asyncio.run(run(addresses, streams, tokens, lambda: None))
    after = process.cpu_times()
    stepping.set()
    thread.join()
    spent = after.user + after.system - before.user - before.system
    return round(1e6 * spent / (streams * tokens), 1)


def idle_bytes(process: psutil.Process, run: Callable[..., Awaitable[None]], *args: object) -> float:
    """MB that so many open streams without a token take."""
    addresses, streams = args
    before = process.memory_info().rss

    async def main() -> int:
        all_open, count = asyncio.Event(), itertools.count(1)

        def opened() -> None:
            if next(count) == streams:
                all_open.set()

        task = asyncio.ensure_future(run(addresses, streams, MOST_TOKENS, opened))
        await all_open.wait()
        taken = process.memory_info().rss - before
        task.cancel()
        return taken

    return round(asyncio.run(main()) / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--idle", type=int, default=1000)
    asked = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with FakeRouter(paused=True) as router:
        child = context.Process(target=serve, args=(router.address, theirs))
        child.start()
        addresses = ours.recv()
        process = psutil.Process(child.pid)
        results: dict[str, float] = {}
        for name, run in (("grpc", over_grpc), ("http", over_http)):
            cpu_per_token(router, process, run, addresses, 4, 50)  # whatever happens once
            results[f"{name}.cpu_us_per_token"] = cpu_per_token(
                router, process, run, addresses, asked.streams, asked.tokens
            )
        for name, run in (("grpc", over_grpc), ("http", over_http)):
            results[f"{name}.idle_{asked.idle}_streams_mb"] = idle_bytes(process, run, addresses, asked.idle)
        ours.send(None)
        child.join()
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
