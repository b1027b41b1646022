"""A gateway between a scripted router and a client that keeps streams open, each a process of its own.

    python -m cluster.cli.gatewaybench.laboratory router STEP_SECONDS
    python -m cluster.cli.gatewaybench.laboratory gateway ROUTER_ADDRESS WINDOW
    python -m cluster.cli.gatewaybench.laboratory bare
    python -m cluster.cli.gatewaybench.laboratory client GATEWAY_ADDRESS RATE SECONDS PROMPT_TOKENS NEW_TOKENS

Each prints a line of JSON when it is ready. The router then prints its stamps for every line on its stdin,
the client sends its load when it gets one, and prints how many tokens came; they end with their stdin.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import uvloop

from cluster.cli.gatewaybench import bare
from cluster.cli.gatewaybench.arrivals import POISSON, Arrival, Size, drawn
from cluster.cli.gatewaybench.client import calling, offer, running
from cluster.cli.gatewaybench.figures import DONE
from cluster.cli.gatewaybench.scripted import ScriptedRouter
from cluster.config import GatewayConfig
from cluster.errors import StartFailed
from cluster.fleet.control import settle
from cluster.gateway.served import ServedModel
from cluster.gateway.service import GatewayService
from cluster.library.bundled import open_model

CONTEXT = 4096
READY_S = 30.0


class Child:
    """One of the two processes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.told: dict[str, Any] = self.answer()
        self._watched = psutil.Process(process.pid)

    def ask(self) -> dict[str, Any]:
        """Its answer to a line."""
        self.tell()
        return self.answer()

    def tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all its threads so far."""
        times = self._watched.cpu_times()
        return float(times.user + times.system)

    @property
    def resident(self) -> int:
        """Bytes."""
        return int(self._watched.memory_info().rss)

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except ValueError:
            raise StartFailed("a process of the measurement ended; what it said is above") from None
        return answer


@dataclass(frozen=True)
class Laboratory:
    router: Child
    gateway: Child

    @property
    def address(self) -> str:
        return str(self.gateway.told["address"])


@contextmanager
def laboratory(step_s: float, window: int = GatewayConfig.window) -> Iterator[Laboratory]:
    """step_s, window: of ScriptedRouter and GatewayConfig. Raises StartFailed."""
    with ExitStack() as stack:
        router = stack.enter_context(_child("router", str(step_s)))
        gateway = stack.enter_context(_child("gateway", str(router.told["address"]), str(window)))
        yield Laboratory(router, gateway)


@contextmanager
def busy_client(address: str, rate: float, seconds: float, size: Size) -> Iterator[Child]:
    """Sends such a Poisson load at the first line that it gets, and then says {"tokens", "lost"}."""
    numbers = map(str, (rate, seconds, size.prompt, size.new))
    with _child("client", address, *numbers) as child:
        yield child


@contextmanager
def bare_server() -> Iterator[str]:
    """The address of a service that only answers (cluster/cli/gatewaybench/bare.py)."""
    with _child("bare") as child:
        yield str(child.told["address"])


@contextmanager
def _child(*arguments: str) -> Iterator[Child]:
    with subprocess.Popen(
        [sys.executable, "-m", __name__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield Child(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def _router(step_s: float) -> None:
    router = ScriptedRouter(step_s, open_model().digest)
    _say({"address": router.start()})
    for _ in sys.stdin:
        stamps = {name: [stamp.received, stamp.first] for name, stamp in list(router.stamps.items())}
        _say({"stamps": stamps, "tokens": router.tokens})
    router.shutdown()


def _gateway(router: str, window: int) -> None:
    served = ServedModel.of(open_model(), CONTEXT)
    service = GatewayService(GatewayConfig(port=0, window=window), served)
    address = service.start()
    service.update({"r0": router})
    deadline = time.monotonic() + READY_S
    while not service.ready and time.monotonic() < deadline:
        time.sleep(0.01)
    settle()  # as a role does that is ready
    _say({"address": address, "ready": service.ready})
    sys.stdin.read()
    service.shutdown(grace_s=0.0)


async def _bare() -> None:
    server, address = await bare.serve()
    _say({"address": address})
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


async def _client(address: str, arrivals: Sequence[Arrival]) -> None:
    async with calling(address) as caller:
        _say({})
        sys.stdin.readline()
        outcome = await offer(caller.generate, arrivals)
    tokens = sum(len(one.tokens_at) for one in outcome.fates)
    _say({"tokens": tokens, "lost": len(outcome.fates) - len(outcome.of(DONE))})


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def _main(role: str, *arguments: str) -> None:
    if role == "router":
        _router(float(arguments[0]))
    elif role == "gateway":
        _gateway(arguments[0], int(arguments[1]))
    elif role == "bare":
        uvloop.run(_bare())
    else:
        rate, seconds = map(float, arguments[1:3])
        size = Size(*map(int, arguments[3:5]))
        running(_client(arguments[0], drawn(POISSON, rate, seconds, size)))


if __name__ == "__main__":
    _main(*sys.argv[1:])
