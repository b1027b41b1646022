"""`moemesh bench`: measure, and print one object (`--json`) or a table."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import grpc
import typer

from cluster.cli.bench_engine import ENGINE_PRESETS, measure_engine
from cluster.cli.bench_gateway import GATEWAY_PRESETS, GatewayPreset, measure_gateway
from cluster.cli.bench_wire import WIRE_PRESETS, measure_wire
from cluster.cli.client import default_address, error_of
from cluster.cli.local import local_engine
from cluster.cli.options import Address, AsJson
from cluster.cli.progress import progress_bar
from cluster.cli.report import Report, Result
from cluster.config import EngineConfig, MiB

KV_BYTES = 512 * MiB
"""Enough for 32 sequences of models that are far larger than the bundled one."""


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Measure the engine and the cluster.", no_args_is_help=True)
    verbs.command("engine")(bench_engine)
    verbs.command("cluster")(bench_cluster)
    app.add_typer(verbs, name="bench")


class Preset(StrEnum):
    minimal = "minimal"
    full = "full"


PresetOption = Annotated[Preset, typer.Option("--preset", help="How many repetitions.")]


def bench_engine(
    model: Annotated[str, typer.Option(help="Library folder; the bundled model if absent.")] = "",
    variant: Annotated[str, typer.Option(help="Variant of the experts; the library's first if absent.")] = "",
    preset: PresetOption = Preset.minimal,
    as_json: AsJson = False,
) -> None:
    """Prefill and decode speed of one process with one compute thread."""
    report = Report(preset.value)
    measured = ENGINE_PRESETS[preset.value]
    with (
        local_engine(model, variant, EngineConfig(kv_bytes=KV_BYTES)) as engine,
        counting(measured.measurements) as say,
    ):
        report.results += measure_engine(engine, measured, say)
    report.show(as_json)


def bench_cluster(
    address: Address = "",
    preset: PresetOption = Preset.minimal,
    as_json: AsJson = False,
) -> None:
    """Dispatch round trips on loopback, then first token and throughput through the gateway of a cluster."""
    report = Report(preset.value)
    gateway = address or default_address()
    wire, clients = WIRE_PRESETS[preset.value], GATEWAY_PRESETS[preset.value]
    with counting(wire.measurements + clients.measurements) as say:
        report.results += measure_wire(wire, say)
        report.results += gateway_results(gateway, clients, say)
    report.show(as_json)


def gateway_results(address: str, preset: GatewayPreset, say: Callable[[str], None]) -> list[Result]:
    """Raises MoemeshError with what the gateway answered."""
    try:
        return asyncio.run(measure_gateway(address, preset, say))
    except grpc.aio.AioRpcError as error:
        raise error_of(error, address) from None


@contextmanager
def counting(total: int) -> Iterator[Callable[[str], None]]:
    """A bar that moves on by one with every text."""
    with progress_bar("measuring") as report:
        done = itertools.count()
        yield lambda text: report(next(done), total, text)
