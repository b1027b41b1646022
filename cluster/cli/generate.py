"""`moemesh generate PROMPT`: stream a completion to stdout."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Annotated

import typer

from cluster.cli import options
from cluster.cli.client import Access, connect
from cluster.cli.completion import Completion, remote_completions, show
from cluster.cli.local_completion import local_completions
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
    address: options.Addresses = None,
    api_key: options.ApiKey = "",
    ca: options.Ca = "",
    client_cert: options.ClientCert = "",
    client_key: options.ClientKey = "",
    model: options.Model = "",
    variant: options.Variant = "",
    kv: options.LocalKv = None,
    max_tokens: options.MaxTokens = DEFAULTS.max_tokens,
    temperature: options.Temperature = DEFAULTS.temperature,
    top_k: options.TopK = DEFAULTS.top_k,
    top_p: options.TopP = DEFAULTS.top_p,
    min_p: options.MinP = DEFAULTS.min_p,
    repetition_penalty: options.RepetitionPenalty = DEFAULTS.repetition_penalty,
    presence_penalty: options.PresencePenalty = DEFAULTS.presence_penalty,
    frequency_penalty: options.FrequencyPenalty = DEFAULTS.frequency_penalty,
    seed: options.Seed = None,
    stop: options.Stop = None,
    json_schema: options.JsonSchema = None,
    regex: options.Regex = "",
    samples: options.Samples = 1,
    logprobs: options.Logprobs = None,
    priority: options.Priority = 0,
    tier: options.Tier = admission.TIER_EXACT,
    as_json: options.AsJson = False,
) -> None:
    """Continue a text, printing it as it comes.

    The JSON has text, token_ids, prompt_tokens, completion_tokens, finish_reason, stop (the string that ended
    the text, if one did), tier, ttft_ms (from the request to its first token), tokens_per_s (all tokens over
    the whole time) and seed; with --logprobs also logprobs and alternatives, pairs of id and log-probability.
    With -n above 1 it has "samples", a list of these.
    """
    if logprobs is not None and not as_json:
        raise typer.BadParameter("needs --json, where they are printed", param_hint="--logprobs")
    wishes = Wishes(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        top_logprobs=logprobs or None,
        grammar=options.read_grammar(json_schema, regex),
        stop=tuple(stop or ()),
        n=samples,
        priority=priority,
    )
    options.check_ranges(wishes)
    text = sys.stdin.read() if prompt == "-" else prompt
    if local:
        config = EngineConfig(kv=kv or KvType.bf16)
        done = _local(model, variant, config, text, wishes, tier, as_json)
    else:
        options.refuse_without_local(variant, kv)
        request = pb.GenerateRequest(
            model=model, text=text, sampling=sampling_of(wishes), tier=tier, priority=priority
        )
        with connect(address, Access(api_key, ca, client_cert, client_key)) as client:
            done = remote_completions(client, request, None if as_json else sys.stdout)
    _print(done, as_json, logprobs is not None)


def _print(done: list[Completion], as_json: bool, logprobs: bool) -> None:
    if as_json:
        found = [completion.to_dict(logprobs) for completion in done]
        print_json(found[0] if len(found) == 1 else {"samples": found})
    elif len(done) > 1:
        show(done, sys.stdout)
    else:
        typer.echo()


def _local(
    model: str, variant: str, config: EngineConfig, text: str, wishes: Wishes, tier: str, as_json: bool
) -> list[Completion]:
    with ExitStack() as waiting:
        waiting.enter_context(Progress()).phase("loading the model and its kernels")
        out = None if as_json else sys.stdout
        return local_completions(model, variant, config, text, wishes, tier, out, ready=waiting.close)
