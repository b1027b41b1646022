"""`moemesh generate PROMPT`: stream a completion to stdout."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from cluster.cli import options
from cluster.cli.client import Access, connect
from cluster.cli.completion import Completion, local_completion, remote_completion
from cluster.cli.options import MaxTokens, MinP, RepetitionPenalty, Temperature, TopK, TopP
from cluster.cli.output import Progress, print_json
from cluster.config import EngineConfig, KvType
from cluster.gateway import admission
from cluster.gateway.admission import DEFAULTS, Wishes
from cluster.gateway.messages import sampling_of
from protos import generation_pb2 as pb


def register(app: typer.Typer) -> None:
    app.command("generate")(generate)


def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads it from stdin.")],
    local: options.Local = False,
    address: options.Address = "",
    api_key: options.ApiKey = "",
    ca: options.Ca = "",
    client_cert: options.ClientCert = "",
    client_key: options.ClientKey = "",
    model: options.Model = "",
    variant: options.Variant = "",
    kv: options.LocalKv = None,
    max_tokens: MaxTokens = DEFAULTS.max_tokens,
    temperature: Temperature = DEFAULTS.temperature,
    top_k: TopK = DEFAULTS.top_k,
    top_p: TopP = DEFAULTS.top_p,
    min_p: MinP = DEFAULTS.min_p,
    repetition_penalty: RepetitionPenalty = DEFAULTS.repetition_penalty,
    seed: options.Seed = None,
    tier: options.Tier = admission.TIER_EXACT,
    as_json: options.AsJson = False,
) -> None:
    """Continue a text, printing it as it comes.

    The JSON has text, token_ids, prompt_tokens, completion_tokens, finish_reason, tier, ttft_ms (from the
    request to its first token), tokens_per_s (all tokens over the whole time) and seed.
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    wishes = Wishes(max_tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    options.check_ranges(wishes)
    if local:
        config = EngineConfig(kv=kv or KvType.bf16)
        done = _local(model, variant, config, text, wishes, tier, as_json)
    else:
        options.refuse_without_local(variant, kv)
        request = pb.GenerateRequest(model=model, text=text, sampling=sampling_of(wishes), tier=tier)
        with connect(address, Access(api_key, ca, client_cert, client_key)) as client:
            done = remote_completion(client, request, None if as_json else sys.stdout)
    if as_json:
        print_json(done.to_dict())
    else:
        typer.echo()


def _local(
    model: str, variant: str, config: EngineConfig, text: str, wishes: Wishes, tier: str, as_json: bool
) -> Completion:
    admission.check_tier(tier)
    with ExitStack() as waiting:
        waiting.enter_context(Progress()).phase("loading the model and its kernels")
        out = None if as_json else sys.stdout
        return local_completion(model, variant, config, text, wishes, out, ready=waiting.close)
