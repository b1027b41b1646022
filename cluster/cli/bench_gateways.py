"""What clients see of a gateway that dies, if they follow the documented policy: a case of `moemesh bench
failover`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from cluster.cli.bench_routers import before_results, promised_results, wire, wrong_tokens
from cluster.cli.calls import Gateway
from cluster.cli.client import NO_ACCESS, Client
from cluster.cli.report import Result, Target, result
from cluster.errors import MoemeshError
from cluster.experiments.chaos.schedule import Shape
from cluster.experiments.chaos.supervised import supervised, wait_whole
from cluster.experiments.live.failover import Asking, Course, Observed, summed_up
from cluster.experiments.live.streams import Stream
from cluster.types import EngineRequest

SHAPE = Shape(nodes=3, nodes_away=1)
VICTIM = "gateway-0"
START_S = 180.0
"""How long the cluster may take to be whole before the run is given up."""

RESUMED = Target(must=1, reference="streams of the lost gateway")
Done = TypeVar("Done")


@dataclass(frozen=True, eq=False)
class GatewayLoss:
    """wrong: tokens that were missing, repeated or others. resumed: streams that were at the gateway. on_s:
    from its loss until every stream had another token."""

    seen: Observed
    wrong: int
    resumed: int
    on_s: float


def observe_gateways(asking: Asking, course: Course) -> GatewayLoss:
    """Serve through two gateways, half of the streams each, one of which is killed. Raises StartFailed."""
    with supervised(asking.library, SHAPE) as cluster:
        wait_whole(cluster, START_S)
        with clients(cluster.gateways, len(asking.requests)) as each:

            def happen() -> tuple[float, int]:
                time.sleep(course.warm_s + course.before_s)
                there = sum(client.address == cluster.gateways[VICTIM] for client in each)
                cluster.kill(VICTIM)
                begin = time.monotonic()
                time.sleep(course.after_s)
                return begin, there

            streams, (begin, resumed) = streams_of(each, asking.requests, happen)
    seen = summed_up(streams, asking.expected, begin, course, 0.0)
    wrong = sum(wrong_tokens(stream, asking.expected[stream.request]) for stream in streams)
    return GatewayLoss(seen, wrong, resumed, until_all_go_on(streams, begin, len(each)))


@contextmanager
def clients(gateways: Mapping[str, str], count: int) -> Iterator[list[Client]]:
    """gateways: address by name. Each is the first of as many clients as any other."""
    with ExitStack() as stack:
        stubs = [
            Gateway(address, stack.enter_context(NO_ACCESS.channel(address)), ())
            for address in gateways.values()
        ]
        turned = [stubs[place:] + stubs[:place] for place in range(len(stubs))]
        yield [Client(turned[number % len(turned)]) for number in range(count)]


def streams_of(
    each: Sequence[Client], requests: Sequence[EngineRequest], action: Callable[[], Done]
) -> tuple[list[Stream], Done]:
    """Keep one stream of every request going at a client of its own, each again when it ends, during
    `action`. Returns all streams, those that were under way at the end too."""
    streams: list[Stream] = []
    enough = threading.Event()

    def keep(place: int) -> None:
        while not enough.is_set():
            streams.append(stream := Stream(place))
            _read(each[place], requests[place], stream, enough)

    with ThreadPoolExecutor(len(requests)) as threads:
        reading = [threads.submit(keep, place) for place in range(len(requests))]
        try:
            done = action()
        finally:
            enough.set()
    for reader in reading:
        reader.result()
    return streams, done


def _read(client: Client, request: EngineRequest, to: Stream, enough: threading.Event) -> None:
    """To its end, or until it is enough."""
    try:
        with closing(client.generate(wire(request))) as responses:
            for part in responses:
                to.tokens += part.token_ids
                to.times += [time.monotonic()] * len(part.token_ids)
                if enough.is_set():
                    return
    except MoemeshError as error:
        to.error = f"{error.code}: {error}"
    to.ended = True


def until_all_go_on(streams: Sequence[Stream], begin: float, count: int) -> float:
    """Seconds after `begin` until each of so many requests, asked again and again, had another token; inf if
    one had none."""
    firsts = [
        min((at for one in streams if one.request == place for at in one.times if at >= begin), default=None)
        for place in range(count)
    ]
    return max(float("inf") if at is None else at - begin for at in firsts)


def gateway_results(name: str, trials: Sequence[GatewayLoss], course: Course) -> list[Result]:
    seen = [each.seen for each in trials]
    return [
        *promised_results(name, seen, [each.wrong for each in trials]),
        result(f"{name}.resumed", [each.resumed for each in trials], "streams", RESUMED),
        result(f"{name}.longest_gap", [each.longest_gap_s for each in seen], "s"),
        result(f"{name}.all_go_on", [each.on_s for each in trials], "s"),
        *before_results(name, seen, course),
    ]
