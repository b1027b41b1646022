"""moemesh.v1.Generation: the typed service."""

from __future__ import annotations

import secrets
import uuid
from typing import Any

from cluster.errors import InvalidRequest
from cluster.gateway import admission
from cluster.gateway.admission import Admitted, Wishes
from cluster.gateway.routers import RouterPool
from cluster.gateway.run import Delta, Outcome, Run
from cluster.gateway.served import ServedModel
from cluster.gateway.status import Context, answering
from cluster.types import EngineRequest, RequestId, SamplingParams
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc

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
    "seed",
)


def draw_seed() -> int:
    return secrets.randbits(64)


def draw_id() -> str:
    return uuid.uuid4().hex


class GenerationService(generation_pb2_grpc.GenerationServicer):
    def __init__(self, served: ServedModel, pool: RouterPool) -> None:
        self._served = served
        self._pool = pool

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        async with answering(context) as answer:
            admitted = await self._admit(request)
            with Run(self._served, self._pool, admitted) as run:
                await context.write(pb.GenerateResponse(start=self._start(admitted)))
                try:
                    while (delta := await run.next()).outcome is None:
                        if delta.token_ids:
                            await context.write(_response(delta))
                    await context.write(_response(delta))
                finally:
                    answer.emitted = run.emitted

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        async with answering(context):
            admission.check_model(request.model, self._served.name)
            ids = await self._prompt(request)
            prompt = admission.check_prompt(ids, self._served.limits, room=0)
            response = pb.ScoreResponse(model=self._served.name, token_ids=prompt)
            if len(prompt) > 1:
                response.logprobs.extend(await self._score(prompt))
            return response
        raise AssertionError("unreachable: an error ends the RPC")

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        async with answering(context):
            admission.check_model(request.model, self._served.name)
            return pb.TokenizeResponse(
                model=self._served.name,
                token_ids=await self._prompt(request),
                context=self._served.limits.context,
                chat_template=self._served.template is not None,
            )
        raise AssertionError("unreachable: an error ends the RPC")

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        async with answering(context):
            if not request.request_id:
                raise InvalidRequest("request_id is empty; name the request to abort")
            return pb.AbortResponse(aborted=self._pool.abort(RequestId(request.request_id)))
        raise AssertionError("unreachable: an error ends the RPC")

    async def _admit(self, request: pb.GenerateRequest) -> Admitted:
        served = self._served
        admission.check_model(request.model, served.name)
        tier = admission.check_tier(request.tier)
        request_id = admission.check_request_id(request.request_id, draw_id)
        wishes = _wishes(request.sampling)
        resume_from = admission.check_resume(request.resume_from, wishes)
        prompt = admission.check_prompt(await self._prompt(request), served.limits)
        sampling = admission.check_sampling(wishes, len(prompt), served.limits, draw_seed)
        return Admitted(request_id, prompt, sampling, tier, resume_from)

    async def _prompt(self, request: Any) -> list[int]:
        """Token ids of the `prompt` oneof that Generate, Score and Tokenize share."""
        which = request.WhichOneof("prompt")
        if which is None:
            raise InvalidRequest("the request has no prompt; send text or what else its message offers")
        if which == "token_ids":
            return list(request.token_ids.ids)
        if which == "messages":
            turns = [{"role": turn.role, "content": turn.content} for turn in request.messages.messages]
            return await self._served.tokenise_chat(turns)
        return await self._served.tokenise(request.text)

    async def _score(self, prompt: tuple[int, ...]) -> list[float]:
        sampling = SamplingParams(max_tokens=0)
        ticket = self._pool.submit(EngineRequest(RequestId(draw_id()), prompt, sampling, "score"))
        try:
            end = (await ticket.mailbox.take()).end
        finally:
            self._pool.release(ticket)
        if end is None or end.logprobs is None:
            raise RuntimeError("a router answered a score request with something else")
        logprobs: list[float] = end.logprobs.tolist()
        return logprobs

    def _start(self, admitted: Admitted) -> pb.Start:
        return pb.Start(
            request_id=admitted.request_id,
            model=self._served.name,
            tier=admitted.tier,
            seed=admitted.sampling.seed,
            prompt_tokens=len(admitted.prompt_ids),
        )


def _wishes(sampling: pb.Sampling) -> Wishes:
    given = {name: getattr(sampling, name) for name in OPTIONAL_SAMPLING if sampling.HasField(name)}
    return Wishes(stop_token_ids=tuple(sampling.stop_token_ids), ignore_eos=sampling.ignore_eos, **given)


def _response(delta: Delta) -> pb.GenerateResponse:
    finish = None if delta.outcome is None else _finish(delta.outcome)
    return pb.GenerateResponse(
        text=delta.text, token_ids=delta.token_ids, logprobs=delta.logprobs, finish=finish
    )


def _finish(outcome: Outcome) -> pb.Finish:
    return pb.Finish(
        reason=REASONS[outcome.reason],
        usage=pb.Usage(prompt_tokens=outcome.prompt_tokens, completion_tokens=outcome.completion_tokens),
        ttft_ms=outcome.ttft_s * 1e3,
        duration_ms=outcome.duration_s * 1e3,
    )
