"""`moemesh up`: start a cluster on this machine, show that it works, say what to try next."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli import options, upfleet
from cluster.cli.output import Progress, addresses_of, print_json
from cluster.cli.upfleet import Fleet
from cluster.cli.values import parse_address, parse_bytes
from cluster.config import (
    ClusterConfig,
    GatewayConfig,
    LogFormat,
    Rebalance,
    TlsFiles,
    TracingConfig,
    WireSecurity,
)
from cluster.errors import MoemeshError, OutOfMemoryBudget
from cluster.sizes import format_bytes

if TYPE_CHECKING:
    from cluster.fleet.folder import Folder, Record
    from cluster.fleet.wanted import Plan
    from cluster.library.reader import Library

DEFAULTS = ClusterConfig()
OFF = "off"
SAMPLE_PROMPT = "And it came to pass"
SAMPLE_TOKENS = 48
GRPCURL_REQUEST = json.dumps({"text": SAMPLE_PROMPT, "sampling": {"max_tokens": 16}})


def register(app: typer.Typer) -> None:
    app.command(help="Start a cluster and a gateway on this machine.")(up)


def up(
    context: typer.Context,
    fleet: Fleet = None,
    model: Annotated[
        str, typer.Option(help="Library folder, from `moemesh pack`; default: the bundled model.")
    ] = DEFAULTS.model,
    experts: Annotated[
        str, typer.Option(metavar="VARIANT", help="Variant of the experts; default: the library's first.")
    ] = DEFAULTS.variant,
    nodes: Annotated[int, typer.Option(min=1, help="Expert nodes.")] = DEFAULTS.nodes,
    routers: Annotated[
        int, typer.Option(min=1, help="Routers, each talking to every node.")
    ] = DEFAULTS.routers,
    gateways: Annotated[
        int, typer.Option(min=1, help="Gateways; each listens two ports above the one before.")
    ] = DEFAULTS.gateways,
    memory_per_node: Annotated[
        str, typer.Option(metavar="SIZE", help="Hard limit of a node's expert weights, e.g. 256MiB; 0: none.")
    ] = format_bytes(DEFAULTS.node.memory_bytes),
    kv_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="KV cache of each router, e.g. 64MiB.")
    ] = format_bytes(DEFAULTS.engine.kv_bytes),
    kv: options.Kv = DEFAULTS.engine.kv,
    prefix_cache: Annotated[
        bool,
        typer.Option("--prefix-cache/--no-prefix-cache", help="Compute equal beginnings of prompts once."),
    ] = DEFAULTS.engine.prefix_cache,
    share_prefixes: Annotated[
        bool, typer.Option("--share-prefixes", help="Let prompts of different API keys share, too.")
    ] = DEFAULTS.engine.share_prefixes,
    grpc: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where the gateway listens; port 0 takes a free one.")
    ] = f"{DEFAULTS.gateway.host}:{DEFAULTS.gateway.port}",
    http: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="Where it speaks OpenAI's dialect; default: gRPC's host, the port after it; off: nowhere.",
        ),
    ] = "",
    tls_cert: Annotated[str, typer.Option(metavar="PEM", help="Certificate of the gateway.")] = "",
    tls_key: Annotated[str, typer.Option(metavar="PEM", help="Its private key.")] = "",
    client_ca: Annotated[
        str, typer.Option(metavar="PEM", help="Clients must show a certificate of this authority.")
    ] = "",
    keys: Annotated[
        str, typer.Option(metavar="FILE", help="Ask for API keys of this file; see `moemesh keys`.")
    ] = DEFAULTS.gateway.keys,
    guard_health: Annotated[
        bool, typer.Option("--guard-health", help="Ask for a key on health checks too.")
    ] = DEFAULTS.gateway.guard_health,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow hosts that other machines reach, without TLS or keys.")
    ] = DEFAULTS.gateway.insecure,
    wire_security: Annotated[
        WireSecurity,
        typer.Option(help="Seal links between the cluster's processes that leave the machine, or all."),
    ] = DEFAULTS.wire_security,
    drain: Annotated[
        float,
        typer.Option(min=0, metavar="SECONDS", help="How long requests may go on after `moemesh down`."),
    ] = DEFAULTS.gateway.drain_s,
    log_format: Annotated[
        LogFormat, typer.Option(help="Of the roles' log files: lines to read, or a JSON object each.")
    ] = DEFAULTS.log_format,
    otlp: Annotated[
        str,
        typer.Option(
            metavar="URL",
            envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
            help="Send OpenTelemetry traces there by OTLP over gRPC, e.g. http://127.0.0.1:4317.",
        ),
    ] = DEFAULTS.tracing.endpoint,
    trace_ratio: Annotated[
        float,
        typer.Option(min=0, max=1, help="Part of the requests to trace, where their clients do not say."),
    ] = DEFAULTS.tracing.ratio,
    threads: Annotated[
        int, typer.Option(min=1, help="Compute threads of each process.")
    ] = DEFAULTS.node.threads,
    choice: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FUNCTION", help="Policy that shares rows among the copies of an expert."
        ),
    ] = DEFAULTS.engine.choice,
    rebalance: Annotated[
        Rebalance,
        typer.Option(help="Experts move by themselves when load or speeds have changed, or when asked to."),
    ] = DEFAULTS.controller.rebalance,
    min_replicas: Annotated[
        int,
        typer.Option(min=1, help="Copies that every expert shall have, as far as nodes and memory allow."),
    ] = DEFAULTS.controller.min_replicas,
    sample: Annotated[bool, typer.Option("--sample/--no-sample", help="Stream a sample completion.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON; no sample.")] = False,
) -> None:
    if fleet is not None:
        _refuse_others(context)
        upfleet.up(fleet, as_json)
        return
    gateway = _gateway(grpc, http, tls_cert, tls_key, client_ca)
    memory_bytes = parse_bytes(memory_per_node, "--memory-per-node")
    config = ClusterConfig(
        model=model,
        variant=experts,
        nodes=nodes,
        routers=routers,
        gateways=gateways,
        engine=replace(
            DEFAULTS.engine,
            kv=kv,
            kv_bytes=parse_bytes(kv_memory, "--kv-memory"),
            threads=threads,
            choice=choice,
            prefix_cache=prefix_cache,
            share_prefixes=share_prefixes,
        ),
        node=replace(DEFAULTS.node, memory_bytes=memory_bytes, threads=threads),
        gateway=replace(
            gateway,
            keys=_absolute(keys),
            guard_health=guard_health,
            insecure=insecure,
            drain_s=drain,
        ),
        controller=replace(DEFAULTS.controller, rebalance=rebalance, min_replicas=min_replicas),
        log_format=log_format,
        tracing=TracingConfig(otlp, trace_ratio),
        wire_security=wire_security,
    )
    begin = time.monotonic()
    folder, record = _start(config)
    seconds = time.monotonic() - begin
    if as_json:
        print_json(_summary(record, config, seconds))
        return
    if sample and not (config.gateway.tls or config.gateway.keys):  # else it would need what clients have
        _show_sample(folder, record)
    _say_what_next(record, config, seconds)


def _refuse_others(context: typer.Context) -> None:
    """Raises BadParameter: a fleet's configuration is in its file."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in ("fleet", "sample", "as_json")
        and getattr(context.get_parameter_source(parameter.name or ""), "name", "") == "COMMANDLINE"
    ]
    if given:
        raise typer.BadParameter(
            f"does not go with {', '.join(given)}; say it in the file", param_hint="--fleet"
        )


def _gateway(grpc: str, http: str, tls_cert: str, tls_key: str, client_ca: str) -> GatewayConfig:
    """Raises BadParameter for addresses that are none and files of TLS that lack another."""
    host, port = parse_address(grpc, "--grpc")
    http_host, http_port = (host, port + 1 if port else 0) if not http else ("", None)
    if http not in ("", OFF):
        http_host, http_port = parse_address(http, "--http")
    if bool(tls_cert) != bool(tls_key) or (client_ca and not tls_cert):
        raise typer.BadParameter("needs both --tls-cert and --tls-key", param_hint="TLS")
    tls = TlsFiles(_absolute(tls_cert), _absolute(tls_key), _absolute(client_ca)) if tls_cert else None
    return replace(
        DEFAULTS.gateway, host=host, port=port, http_host=http_host or host, http_port=http_port, tls=tls
    )


def _absolute(path: str) -> str:
    """Roles run in folders of their own."""
    return str(Path(path).resolve()) if path else ""


def _start(config: ClusterConfig) -> tuple[Folder, Record]:
    from cluster.fleet.signals import Signals

    with Progress() as progress, Signals() as signals:
        progress.phase("opening the library")
        from cluster.fleet import stop
        from cluster.fleet.folder import Folder
        from cluster.fleet.launch import launch

        folder = Folder()
        record = launch(_plan(config), folder, progress, signals)
        if signals.noted:  # so late that the cluster is up: whoever sent it does not want it
            stop.down(folder)
            signals.check()
        return folder, record


def _plan(config: ClusterConfig) -> Plan:
    """Everything that can be wrong without starting anything. Raises ClusterError, LibraryError."""
    from cluster.balance.policies import resolve
    from cluster.fleet.wanted import Plan, shape_of
    from cluster.gateway.service import check_access
    from cluster.library.bundled import open_model
    from cluster.tracing import check_tracing

    check_access(config.gateway)
    check_tracing(config.tracing)
    resolve(config.engine.choice)
    library = open_model(config.model)
    variant = config.variant or library.manifest.default_variant
    _check_budgets(library, variant, config)
    shape = shape_of(library, variant, config.nodes)
    return Plan(config, str(library.path.resolve()), library.name, variant, shape)


def _check_budgets(library: Library, variant: str, config: ClusterConfig) -> None:
    """Raises OutOfMemoryBudget before anything is started, naming the option and the bytes it needs."""
    from cluster.compute.weights import kv_dtype
    from cluster.router.kv import page_bytes

    expert = max(ref.bytes for layer in library.variant(variant).blobs for ref in layer)
    dtype = kv_dtype(library.manifest.trunk.floating, config.engine.kv)
    page = page_bytes(library.spec, config.engine.page_tokens, dtype)
    for option, given, needed, what in (
        ("--memory-per-node", config.node.memory_bytes or expert, expert, "one expert"),
        ("--kv-memory", config.engine.kv_bytes, page, "one KV page"),
    ):
        if given < needed:
            raise OutOfMemoryBudget(
                f"{option} of {given} bytes is below {what} of {library.name}; give at least {needed} bytes"
            )


def _show_sample(folder: Folder, record: Record) -> None:
    """A cluster that cannot answer, or whose owner presses Ctrl-C now, is stopped again."""
    from cluster.cli.completion import stream_completion
    from cluster.fleet.stop import down

    def unwind(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, unwind)
    try:
        sys.stdout.write(f"\n{SAMPLE_PROMPT}")
        stream_completion(record.grpc, SAMPLE_PROMPT, SAMPLE_TOKENS, sys.stdout)
        sys.stdout.write("\n")
    except (MoemeshError, KeyboardInterrupt, SystemExit):
        sys.stdout.write("\n")
        down(folder)
        raise


def _say_what_next(record: Record, config: ClusterConfig, seconds: float) -> None:
    address = record.grpc
    addresses = ",".join(one.grpc for one in record.entrances)
    default = addresses == f"{DEFAULTS.gateway.host}:{DEFAULTS.gateway.port}"
    option = "" if default else f" --address {addresses}"
    command = _command()
    typer.echo(
        f"\n{record.model} ({record.variant}) is up on {config.nodes} nodes after {seconds:.1f} s\n"
        f"{addresses_of(record.gateways())}"
        "\nTry next:\n"
        f'  {command} generate "To be, or not to be"{option}\n'
        f"  {command} chat{option}\n"
        f"  grpcurl -plaintext -d '{GRPCURL_REQUEST}' {address} moemesh.v1.Generation/Generate\n"
        f"  {command} status\n"
        f"  {command} down"
    )


def _command() -> str:
    """How the user calls this program: by its name if the shell finds it, else by the path that was typed."""
    typed = sys.argv[0]
    found = shutil.which("moemesh") is not None or not typed.endswith("/moemesh")
    return "moemesh" if found else typed


def _summary(record: Record, config: ClusterConfig, seconds: float) -> dict[str, Any]:
    return {
        "grpc": record.grpc,
        "http": record.http_url,
        "model": record.model,
        "variant": record.variant,
        "nodes": config.nodes,
        "routers": config.routers,
        "gateways": record.gateways(),
        "seconds": round(seconds, 2),
        "processes": [one.pid for one in record.processes],
    }
