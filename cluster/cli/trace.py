"""`moemesh trace`: record, generate, import and look at routing traces."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.cli.options import AsJson
from cluster.cli.output import print_json
from cluster.cli.progress import progress_bar
from cluster.experiments.extras import require_extras

if TYPE_CHECKING:
    from cluster.experiments.routing import Header, Trace
    from cluster.library.reader import Library

Out = Annotated[Path, typer.Argument(metavar="OUT", help="Trace to write, e.g. routing.parquet.")]


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Which experts every token chose: record, make, read.", no_args_is_help=True)
    verbs.callback()(require_extras)
    verbs.command("info")(info_command)
    verbs.command("record")(record_command)
    verbs.command("generate")(generate_command)
    verbs.command("import")(import_command)
    app.add_typer(verbs, name="trace")


def info_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A trace.")], as_json: AsJson = False
) -> None:
    """Say what a trace holds: model, tokens, steps, and how unequal the load of its experts is."""
    from cluster.experiments.summary import summarise
    from cluster.experiments.traces import read

    values = summarise(read(file))
    if as_json:
        print_json(values)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for key, value in values.items():
        table.add_row(key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    Console(highlight=False).print(table)


def record_command(
    out: Out,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text", help="Text in UTF-8 to run in this process.", exists=True, dir_okay=False, readable=True
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="With --text: library folder; the bundled model if absent.")
    ] = "",
    variant: Annotated[
        str, typer.Option(help="With --text: variant of the experts; the library's first if absent.")
    ] = "",
    chunk: Annotated[int, typer.Option(help="With --text: tokens of a step.", min=1)] = 64,
    seconds: Annotated[
        float, typer.Option(help="Without --text: how long to record; 0: no limit.", min=0)
    ] = 10.0,
    steps: Annotated[
        int, typer.Option(help="Without --text: most steps of all routers; 0: no limit.", min=0)
    ] = 0,
    tokens: Annotated[
        int, typer.Option(help="Without --text: about so many tokens; 0: no limit.", min=0)
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Record which experts the gates choose: in the cluster that is up, or for a text in this process."""
    if text is None:
        if model or variant:
            raise typer.BadParameter("the cluster that is up has one; or give --text", param_hint="--model")
        _record_cluster(out, seconds, steps, tokens, as_json)
    else:
        _record_text(out, text, model, variant, chunk, as_json)


def _record_cluster(out: Path, seconds: float, steps: int, tokens: int, as_json: bool) -> None:
    from cluster.experiments.live.record import LiveTrace, Until
    from cluster.fleet.ask import Controller
    from cluster.fleet.folder import Folder

    until = Until(seconds, steps, tokens)
    folder = Folder()
    record = folder.require()
    with Controller(record.controller, folder) as controller:
        members = controller.status()["members"]
    routers = {one["id"]: one["address"] for one in members if one["role"] == "router" and one["ready"]}
    source = f"{record.model}: {len(routers)} routers"
    with LiveTrace(routers, source, key=folder.cluster_key()) as live:
        _write(out, live.header, live.traces(until), tokens, as_json)
    if live.dropped:
        typer.echo(f"{live.dropped} tokens were left out: routers had no room for them", err=True)


def _record_text(out: Path, text: Path, model: str, variant: str, chunk: int, as_json: bool) -> None:
    from cluster.cli.score import read_text
    from cluster.experiments.routing import Header
    from cluster.library.bundled import open_model

    library = open_model(model)
    ids = tuple(library.tokenizer().encode(read_text(text)))
    spec = library.spec
    sparse = tuple(layer for layer in range(spec.layers) if not spec.dense_widths[layer])
    header = Header(spec.experts, spec.top_k, sparse, f"{library.name}: {text.name}")
    _write(out, header, _recorded(library, variant, ids, header, chunk), len(ids), as_json)


def _recorded(
    library: Library, variant: str, ids: tuple[int, ...], header: Header, chunk: int
) -> Iterator[Trace]:
    """Scores the text window by window; each window is a request."""
    from cluster.cli.local import local_engine, score
    from cluster.cli.quality import windows
    from cluster.config import EngineConfig
    from cluster.experiments.traces import from_records
    from cluster.router.recorder import GateRecorder

    recorder = GateRecorder(len(header.layers), time.monotonic)
    with local_engine(library, variant, EngineConfig(chunk_tokens=chunk), probe=recorder) as engine:
        for number, part in enumerate(windows(ids, engine.context)):
            score(engine, part)
            yield from from_records(header, recorder.drain(), number)


def generate_command(
    out: Out,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="Of the workload, see below.")
    ] = None,
    spec: Annotated[Path | None, typer.Option(help="YAML file with the same keys.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.", min=0)] = 0,
    as_json: AsJson = False,
) -> None:
    """Make a trace up: Zipf popularity of a given Gini coefficient, domains that drift, bursts, correlation.

    Keys: layers, experts, top_k, steps, tokens, gini, zipf, domains, switches, blend, burst_rate,
    burst_factor, groups, correlation, step_s, request_tokens. For example: experts=64 gini=0.3 domains=2
    switches=100.
    """
    from cluster.experiments.generators import Workload, generate
    from cluster.values import build, mapping, parse_pairs
    from cluster.yamlfile import load_yaml

    values: dict[str, Any] = mapping(load_yaml(spec), str(spec)) if spec else {}
    workload = build(Workload, values | parse_pairs(Workload, settings or [], "the trace"), "the trace")
    _write(out, workload.header, generate(workload, seed), workload.steps * workload.tokens, as_json)


def import_command(
    file: Annotated[Path, typer.Argument(metavar="IN", help=".npy or .npz, ids [tokens, layers, top-k].")],
    out: Out,
    tokens_per_step: Annotated[
        int, typer.Option("--step", help="Consecutive tokens that make a step.", min=1)
    ] = 64,
    experts: Annotated[
        int, typer.Option(help="Experts in a layer; the largest id says if absent.", min=0)
    ] = 0,
    layers_first: Annotated[bool, typer.Option(help="Ids are [layers, tokens, top-k].")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a published expert-selection trace into one of ours."""
    from cluster.experiments.importer import import_arrays

    header, parts, tokens = import_arrays(file, tokens_per_step, experts, layers_first)
    _write(out, header, parts, tokens, as_json)


def _write(out: Path, header: Header, parts: Iterable[Trace], expected: int, as_json: bool) -> None:
    from cluster.experiments.traces import TraceWriter

    tokens = 0
    with progress_bar("writing") as report, TraceWriter(out, header) as writer:
        for part in parts:
            writer.write(part)
            tokens += len(part)
            report(tokens, max(tokens, expected), "tokens")
    if as_json:
        print_json({"trace": str(out), "tokens": tokens, "bytes": out.stat().st_size})
        return
    size = out.stat().st_size
    typer.echo(f"{tokens} tokens in {out}, {size:,} bytes; look at it: moemesh trace info {out}")
