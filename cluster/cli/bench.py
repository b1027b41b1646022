"""`moemesh bench`: measure, and print one object (`--json`) or a table."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.gatewaybench.parts import STANDARD, Part
from cluster.cli.options import Address, AsJson, Kv
from cluster.cli.output import Progress
from cluster.config import EngineConfig, MiB
from cluster.errors import MoemeshError

if TYPE_CHECKING:
    from cluster.cli.bench_gateway import GatewayPreset
    from cluster.cli.report import Result

KV_BYTES = 512 * MiB
"""Enough for 32 sequences of models that are far larger than the bundled one."""

DEFAULTS = EngineConfig()

MOEMESH = (sys.executable, "-m", "cluster.cli.app")


class Case(StrEnum):
    """Of a failover. kill, freeze, cut, slow: two copies of every expert. sole: one, whose node is killed.
    router, frozen_router: one of two routers behind a gateway is killed, or frozen. controller: it is killed,
    and started again after a while. gateway: one of two is killed, and its clients go on at the other."""

    kill = "kill"
    freeze = "freeze"
    cut = "cut"
    slow = "slow"
    sole = "sole"
    router = "router"
    frozen_router = "frozen-router"
    controller = "controller"
    gateway = "gateway"


class Preset(StrEnum):
    minimal = "minimal"
    full = "full"


PresetOption = Annotated[Preset, typer.Option("--preset", help="How many repetitions.")]


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Measure the engine, the cluster and the policies.", no_args_is_help=True)
    verbs.command("kernels")(bench_kernels)
    verbs.command("engine")(bench_engine)
    verbs.command("cluster")(bench_cluster)
    verbs.command("balance")(bench_balance)
    verbs.command("gateway")(bench_gateway)
    verbs.command("failover")(bench_failover)
    app.add_typer(verbs, name="bench")


def bench_kernels(
    preset: PresetOption = Preset.minimal,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw the roofline to FILE.svg or FILE.png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """This machine's limits, and every kernel at real models' shapes as a fraction of them.

    Preset minimal takes a minute with 256 MiB of experts, which in part stay in a large cache; full takes
    ten with 2 GiB, and holds its figures against the targets.
    """
    from cluster.cli.kernelbench import roofline
    from cluster.cli.kernelbench.run import PRESETS, measure_kernels
    from cluster.cli.report import Report
    from kernels import warm

    if plot is not None:
        roofline.check(plot)
    report = Report(preset.value)
    with Progress() as progress:
        progress.phase("compiling kernels")
        warm.compile_all(apart=True)
        found = measure_kernels(PRESETS[preset.value], progress.phase)
    report.results += found.results
    if plot is not None:
        roofline.draw(found, plot)
    report.show(as_json)


def bench_engine(
    model: Annotated[str, typer.Option(help="Library folder; the bundled model if absent.")] = "",
    variant: Annotated[str, typer.Option(help="Variant of the experts; the library's first if absent.")] = "",
    kv: Kv = DEFAULTS.kv,
    preset: PresetOption = Preset.minimal,
    as_json: AsJson = False,
) -> None:
    """Prefill and decode speed of one process with one compute thread."""
    from cluster.cli.bench_engine import ENGINE_PRESETS, measure_engine
    from cluster.cli.local import local_engine
    from cluster.cli.report import Report

    report = Report(preset.value)
    with Progress() as progress:
        progress.phase("loading the model and its kernels")
        with local_engine(
            model, variant, EngineConfig(kv=kv, kv_bytes=KV_BYTES, prefix_cache=False)
        ) as engine:
            report.results += measure_engine(engine, ENGINE_PRESETS[preset.value], progress.phase)
    report.show(as_json)


def bench_cluster(
    address: Address = "", preset: PresetOption = Preset.minimal, as_json: AsJson = False
) -> None:
    """Dispatch round trips on loopback, then first token and throughput through a gateway.

    Without an address the cluster that is up is measured, and if there is none, one that is started for it.
    """
    from cluster.cli.bench_gateway import GATEWAY_PRESETS
    from cluster.cli.bench_wire import WIRE_PRESETS, measure_wire
    from cluster.cli.report import Report
    from kernels import warm

    report = Report(preset.value)
    with Progress() as progress:
        progress.phase("compiling kernels")
        warm.compile_all(apart=True)
        report.results += measure_wire(WIRE_PRESETS[preset.value], progress.phase)
        with _gateway(address, progress.phase) as gateway:
            report.results += gateway_results(gateway, GATEWAY_PRESETS[preset.value], progress.phase)
    report.show(as_json)


def bench_balance(preset: PresetOption = Preset.minimal, as_json: AsJson = False) -> None:
    """Placement and replica choice beside their lower bounds, EPLB and simpler rules.

    Then live clusters of the bundled model, beside what the dispatch LP and the simulator say of them.
    """
    from cluster.cli.bench_balance import BALANCE_PRESETS, measure_balance
    from cluster.cli.report import Report

    report = Report(preset.value)
    with Progress() as progress:
        report.results += measure_balance(BALANCE_PRESETS[preset.value], progress.phase)
    report.show(as_json)


def bench_gateway(
    address: Address = "",
    parts: Annotated[
        list[Part] | None, typer.Option("--part", help="Only this; again for more. All but load if absent.")
    ] = None,
    arrivals: Annotated[
        str, typer.Option(help="Of --part load: poisson, bursts, or a FILE of arrivals to replay.")
    ] = "poisson",
    rate: Annotated[float, typer.Option(help="Of --part load: requests a second in the mean.")] = 20.0,
    seconds: Annotated[float, typer.Option(help="Of --part load; the preset's if 0.")] = 0.0,
    slo: Annotated[
        str, typer.Option(help="What makes a request good: ttft=MS,itl=MS; for the goodput.")
    ] = "ttft=500,itl=100",
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw the loads to FILE.svg or .png.")] = None,
    preset: PresetOption = Preset.minimal,
    as_json: AsJson = False,
) -> None:
    """Open-loop load: what the gateway adds, what it refuses, and how fast those are that it accepts.

    overhead and idle run in front of a scripted router, the other parts against the cluster at the address,
    the one that is up, or one that is started for it. Preset full takes five minutes.
    """
    from cluster.cli.gatewaybench.command import PRESETS, Bench, Load
    from cluster.cli.gatewaybench.figures import Slo
    from cluster.cli.gatewaybench.plot import draw
    from cluster.cli.kernelbench import roofline
    from cluster.cli.report import Report

    if plot is not None:
        roofline.check(plot)
    report = Report(preset.value)
    chosen = tuple(parts or STANDARD)
    with Progress() as progress:
        load = Load(arrivals, rate, seconds)
        bench = Bench(PRESETS[preset.value], load, Slo.parse(slo), lambda: _gateway(address, progress.phase))
        with _client_errors(address):
            found, outcomes = bench.measure(chosen, progress.phase)
    report.results += found
    if plot is not None and outcomes:
        draw(outcomes, plot)
    report.show(as_json)


def bench_failover(
    cases: Annotated[
        list[Case] | None, typer.Option("--case", help="Only this; again for more. All if absent.")
    ] = None,
    preset: PresetOption = Preset.minimal,
    as_json: AsJson = False,
) -> None:
    """What streams see of lost nodes, routers, gateways, controllers: failed requests, bits, gaps, the way
    back.

    Clusters of paced nodes on this machine; one node is killed, frozen, cut off or slowed down while 16
    streams run over two copies of every expert, or killed where there is one copy. Or, behind a gateway, one
    of two routers is killed or frozen, or the controller killed. Or one of two gateways is killed,
    each with half of the clients, which go on at the other one.
    """
    from cluster.cli.bench_failover import FAILOVER_PRESETS, measure_failover
    from cluster.cli.report import Report

    report = Report(preset.value)
    with Progress() as progress:
        chosen = tuple(cases or Case)
        report.results += measure_failover(chosen, FAILOVER_PRESETS[preset.value], progress.phase)
    report.show(as_json)


@contextmanager
def _client_errors(address: str) -> Iterator[None]:
    """What a gateway answers to a client of the measurement, as an error of ours."""
    import grpc

    from cluster.cli.calls import error_of

    try:
        yield
    except* grpc.RpcError as errors:
        raise error_of(_first(errors), address) from None


def gateway_results(address: str, preset: GatewayPreset, say: Callable[[str], None]) -> list[Result]:
    """Raises MoemeshError with what the gateway answered."""
    import grpc

    from cluster.cli.bench_gateway import measure_gateway
    from cluster.cli.calls import error_of

    try:
        return asyncio.run(measure_gateway(address, preset, say))
    except* grpc.RpcError as errors:
        error = _first(errors)
    raise error_of(error, address)


def _first(errors: BaseExceptionGroup[Any]) -> Any:
    """One of the errors inside; streams that fail together fail for one reason."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def _gateway(address: str, say: Callable[[str], None]) -> Iterator[str]:
    """The address to measure. A cluster that is started here has its own state folder, and is stopped."""
    from cluster.fleet.folder import Folder

    record = Folder().read()
    if not address and record is not None and record.alive():
        address = record.grpc
    if address:
        yield address
        return
    with tempfile.TemporaryDirectory(prefix="moemesh") as folder:
        environment = os.environ | {"MOEMESH_STATE_DIR": folder}
        say("starting a cluster")
        started = _moemesh(environment, "up", "--no-sample", "--json", "--grpc", "127.0.0.1:0")
        try:
            yield str(started["grpc"])
        finally:
            say("stopping the cluster")
            _moemesh(environment, "down", "--json")


def _moemesh(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    """Run a verb in a process of its own and return its JSON. Raises MoemeshError with its message.

    Ctrl-C reaches that process too; it is given the time to clean up.
    """
    with subprocess.Popen(
        [*MOEMESH, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate()
        except KeyboardInterrupt:
            process.wait()
            raise
    try:
        answer: dict[str, Any] = json.loads(out)
    except ValueError:
        raise MoemeshError(
            f"`moemesh {arguments[0]}` ended with {process.returncode}: {err[-500:]}"
        ) from None
    if process.returncode:
        raise MoemeshError(str(answer["error"]["message"]))
    return answer
