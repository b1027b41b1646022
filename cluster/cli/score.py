"""`moemesh score FILE`: how likely a model finds a text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from cluster.cli import options
from cluster.cli.client import Access, Client, connect
from cluster.cli.output import Progress, print_json
from cluster.cli.progress import progress_bar
from cluster.cli.quality import Quality, measure, perplexity, windows
from cluster.config import EngineConfig, KvType
from cluster.errors import InvalidRequest
from cluster.gateway import admission
from cluster.library.bundled import open_model
from protos import generation_pb2 as pb

Scored = tuple[tuple[int, ...], Quality]
"""Token ids, and what a model thinks of them."""


def register(app: typer.Typer) -> None:
    app.command("score")(score)


def score(
    file: Annotated[Path, typer.Argument(help="Text in UTF-8.", exists=True, dir_okay=False, readable=True)],
    local: options.Local = False,
    address: options.Addresses = None,
    api_key: options.ApiKey = "",
    ca: options.Ca = "",
    client_cert: options.ClientCert = "",
    client_key: options.ClientKey = "",
    model: options.Model = "",
    variant: options.Variant = "",
    kv: options.LocalKv = None,
    reference: Annotated[
        str,
        typer.Option(help="Library folder to compare with, e.g. packed with --experts f32; implies --local."),
    ] = "",
    window: Annotated[
        int, typer.Option(help="Tokens scored together; 0 takes the model's context.", min=0)
    ] = 0,
    as_json: options.AsJson = False,
) -> None:
    """Log-probability of every token of a text after the first, and its perplexity.

    Long texts are scored window by window; each begins with the last token of the one before. With a
    reference also the mean KL divergence of the next-token distribution from it, its perplexity, and the
    share of its top-k experts that the gates chose too.
    """
    if window == 1:
        raise typer.BadParameter("a window has at least 2 tokens", param_hint="--window")
    text = read_text(file)
    if local or reference:
        config = EngineConfig(kv=kv or KvType.bf16)
        ids, quality = _local(text, model, variant, config, window, reference)
    else:
        options.refuse_without_local(variant, kv)
        with connect(address, Access(api_key, ca, client_cert, client_key)) as client:
            ids, quality = _remote(client, text, model, window)
    _show(ids, quality, as_json)


def read_text(file: Path) -> str:
    """Raises InvalidRequest for an empty file or one that is not UTF-8."""
    try:
        text = file.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{file} is not UTF-8: {error.reason} at byte {error.start}") from None
    admission.check_text(text)
    return text


def _local(text: str, model: str, variant: str, config: EngineConfig, window: int, reference: str) -> Scored:
    ids = tuple(open_model(model).tokenizer().encode(text))
    with Progress() as progress:
        progress.phase(f"loading the model and its kernels, scoring {len(ids)} tokens")
        return ids, measure(model, variant, ids, window, reference, config)


def _remote(client: Client, text: str, model: str, window: int) -> Scored:
    info = client.tokenize(pb.TokenizeRequest(model=model, text=text))
    ids = tuple(info.token_ids)
    parts = list(windows(ids, min(window or info.context, info.context)))
    logprobs: list[float] = []
    with progress_bar("scoring") as report:
        for done, part in enumerate(parts):
            report(done, len(parts), f"{len(ids)} tokens")
            request = pb.ScoreRequest(model=model, token_ids=pb.TokenIds(ids=part))
            logprobs += client.score(request).logprobs
    values = np.asarray(logprobs, np.float32)
    return ids, Quality(values, perplexity(values))


def _show(ids: tuple[int, ...], quality: Quality, as_json: bool) -> None:
    values: dict[str, Any] = {
        "tokens": len(ids),
        "perplexity": quality.perplexity,
        "reference_perplexity": quality.reference_perplexity,
        "kl": quality.kl,
        "gate_topk_agreement": quality.agreement,
    }
    if as_json:
        logprobs = quality.logprobs.tolist()
        print_json({**values, "token_ids": list(ids), "logprobs": logprobs})
        return
    for name, value in values.items():
        if value is not None:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            typer.echo(f"{name.replace('_', ' '):22}{shown}")
