"""Between the messages of moemesh.v1 and the gateway's own words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from cluster.config import GatewayConfig
from cluster.errors import InvalidRequest
from cluster.gateway import admission
from cluster.gateway.admission import Admitted, Wishes
from cluster.gateway.run import Delta, Outcome
from cluster.gateway.served import ServedModel
from cluster.types import (
    MOST_ALTERNATIVES,
    MOST_GRAMMAR_BYTES,
    MOST_PRIORITY,
    MOST_STOP_IDS,
    NUMERICS_VERSION,
    Alternatives,
    Grammar,
    GrammarKind,
    sample_seed,
)
from protos import generation_pb2 as pb

REASONS = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "aborted": pb.FINISH_REASON_ABORTED,
}
OPTIONAL_SAMPLING = (
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "top_logprobs",
    "n",
)

Prompted = pb.GenerateRequest | pb.ScoreRequest | pb.EmbedRequest | pb.TokenizeRequest


def wishes_of(sampling: pb.Sampling, priority: int) -> Wishes:
    """Raises InvalidRequest for a grammar that is none."""
    given = {name: getattr(sampling, name) for name in OPTIONAL_SAMPLING if sampling.HasField(name)}
    return Wishes(
        stop_token_ids=tuple(sampling.stop_token_ids),
        stop=tuple(sampling.stop),
        grammar=_grammar_of(sampling.grammar) if sampling.HasField("grammar") else None,
        priority=priority,
        ignore_eos=sampling.ignore_eos,
        **given,
    )


def sampling_of(wishes: Wishes) -> pb.Sampling:
    """Inverse of `wishes_of`; what is None stays absent. Priority is not a part of it."""
    given = {name: getattr(wishes, name) for name in OPTIONAL_SAMPLING}
    sampling = pb.Sampling(
        stop_token_ids=wishes.stop_token_ids,
        stop=wishes.stop,
        ignore_eos=wishes.ignore_eos,
        **{name: value for name, value in given.items() if value is not None},
    )
    if wishes.grammar is not None:
        setattr(sampling.grammar, wishes.grammar.kind, wishes.grammar.text)
    return sampling


def _grammar_of(grammar: pb.Grammar) -> Grammar:
    kind: GrammarKind | None = grammar.WhichOneof("grammar")
    if kind is None:
        raise InvalidRequest("grammar is empty; send json_schema, regex or lark")
    return Grammar(kind, getattr(grammar, kind))


async def prompt_of(served: ServedModel, request: Prompted) -> list[int]:
    """Token ids of the `prompt` oneof that several requests share. Raises InvalidRequest."""
    which = request.WhichOneof("prompt")
    if which is None:
        raise InvalidRequest("the request has no prompt; send text or what else its message offers")
    if which == "text":
        return await served.tokenise(request.text)
    if which == "messages":
        assert isinstance(request, pb.TokenizeRequest)
        return await served.tokenise_chat(turns_of(request.messages.messages))
    assert not isinstance(request, pb.TokenizeRequest)
    return list(request.token_ids.ids)


async def chat_prompt_of(served: ServedModel, request: pb.ChatRequest) -> list[int]:
    """Raises InvalidRequest for a model without a template and for what the template refuses."""
    return await served.tokenise_chat(turns_of(request.messages), _variables_of(request.variables))


def _variables_of(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"variables is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise InvalidRequest("variables must be a JSON object")
    return values


def turns_of(messages: Iterable[pb.ChatMessage]) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def start_of(served: ServedModel, admitted: Admitted) -> pb.Start:
    seed, samples = admitted.sampling.seed, admitted.samples
    return pb.Start(
        request_id=admitted.request_id,
        model=served.name,
        tier=admitted.tier,
        seed=seed,
        prompt_tokens=len(admitted.prompt_ids),
        sample_seeds=[sample_seed(seed, i) for i in range(samples)] if samples > 1 else (),
        weights=served.weights,
    )


def response_of(delta: Delta) -> pb.GenerateResponse:
    return pb.GenerateResponse(
        text=delta.text,
        token_ids=delta.token_ids,
        logprobs=delta.logprobs,
        finish=None if delta.outcome is None else _finish_of(delta.outcome),
        index=delta.index,
        alternatives=alternatives_of(delta.alternatives) if delta.alternatives else None,
    )


def alternatives_of(places: Sequence[Alternatives]) -> list[pb.Alternatives]:
    return [
        pb.Alternatives(token_ids=[token for token, _ in place], logprobs=[value for _, value in place])
        for place in places
    ]


def _finish_of(outcome: Outcome) -> pb.Finish:
    return pb.Finish(
        reason=REASONS[outcome.reason],
        usage=pb.Usage(prompt_tokens=outcome.prompt_tokens, completion_tokens=outcome.completion_tokens),
        ttft_ms=outcome.ttft_s * 1e3,
        duration_ms=outcome.duration_s * 1e3,
        stop=outcome.stop,
    )


def model_info(served: ServedModel, config: GatewayConfig, tiers: Sequence[str]) -> pb.ModelInfo:
    """config: the limits of this gateway. tiers: offered now."""
    facts = served.facts
    return pb.ModelInfo(
        model=served.name,
        library=served.library,
        numerics_version=NUMERICS_VERSION,
        family=facts.family,
        layers=facts.layers,
        experts=facts.experts,
        experts_per_token=facts.top_k,
        vocabulary=served.limits.vocab,
        context=served.limits.context,
        embedding_width=facts.hidden,
        variants=facts.variants,
        variant=facts.variant,
        tiers=tiers,
        chat_template=None if served.template is None else served.template.source,
        eos_token_ids=facts.eos_ids,
        limits=pb.RequestLimits(
            samples=admission.MAX_SAMPLES,
            top_logprobs=MOST_ALTERNATIVES,
            stop_strings=admission.MAX_STOPS,
            stop_characters=admission.MAX_STOP_CHARS,
            stop_token_ids=MOST_STOP_IDS,
            grammar_bytes=MOST_GRAMMAR_BYTES,
            message_bytes=config.max_message_bytes,
            resume_window_s=config.max_resume_s,
            priority=MOST_PRIORITY,
        ),
    )
