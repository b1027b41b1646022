"""`moemesh embed TEXT`: one vector for a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from cluster.cli import options
from cluster.cli.client import Access, connect
from cluster.cli.local import embed as embed_ids
from cluster.cli.local import local_engine
from cluster.cli.output import Progress, print_json
from cluster.cli.score import read_text
from cluster.config import EngineConfig, KvType
from cluster.gateway import admission
from cluster.gateway.admission import Limits
from cluster.gateway.whole import normalised
from cluster.library.bundled import open_model
from protos import generation_pb2 as pb

SHOWN = 8


def register(app: typer.Typer) -> None:
    app.command("embed")(embed)


def embed(
    text: Annotated[str, typer.Argument(help="Text; - reads it from stdin.")] = "",
    file: Annotated[
        Path | None, typer.Option(help="File in UTF-8, in place of TEXT.", exists=True, dir_okay=False)
    ] = None,
    local: options.Local = False,
    address: options.Addresses = None,
    api_key: options.ApiKey = "",
    ca: options.Ca = "",
    client_cert: options.ClientCert = "",
    client_key: options.ClientKey = "",
    model: options.Model = "",
    variant: options.Variant = "",
    kv: options.LocalKv = None,
    normalise: Annotated[bool, typer.Option("--normalise", help="Scale the vector to length 1.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Mean over a text's tokens of the last layer's hidden states behind the final norm.

    The JSON has values (float32), dimension, prompt_tokens and normalised.
    """
    if file is not None and text:
        raise typer.BadParameter("give a text or a file, not both", param_hint="--file")
    read = read_text(file) if file is not None else sys.stdin.read() if text == "-" else text
    admission.check_text(read)
    if local:
        values, tokens = _local(read, model, variant, EngineConfig(kv=kv or KvType.bf16), normalise)
    else:
        options.refuse_without_local(variant, kv)
        with connect(address, Access(api_key, ca, client_cert, client_key)) as client:
            answer = client.embed(pb.EmbedRequest(model=model, text=read, normalise=normalise))
        values, tokens = list(answer.values), answer.prompt_tokens
    _show(values, tokens, normalise, as_json)


def _local(
    text: str, model: str, variant: str, config: EngineConfig, normalise: bool
) -> tuple[list[float], int]:
    library = open_model(model)
    limits = Limits(library.spec.context, library.spec.vocab)
    ids = admission.check_prompt(library.tokenizer().encode(text), limits, room=0)
    with Progress() as progress:
        progress.phase("loading the model and its kernels")
        with local_engine(library, variant, config) as engine:
            values = embed_ids(engine, ids)
    return (normalised(values) if normalise else values).tolist(), len(ids)


def _show(values: list[float], tokens: int, normalise: bool, as_json: bool) -> None:
    if as_json:
        shape = {"dimension": len(values), "prompt_tokens": tokens, "normalised": normalise}
        print_json({**shape, "values": values})
        return
    length = float(np.linalg.norm(values))
    head = " ".join(f"{value:.4g}" for value in values[:SHOWN])
    typer.echo(f"{len(values)} values of length {length:.4g} for {tokens} tokens: {head} …")
