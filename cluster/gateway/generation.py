"""moemesh.v1.Generation: the typed service."""

from __future__ import annotations

from cluster.config import GatewayConfig
from cluster.errors import InvalidRequest
from cluster.gateway import admission, messages, whole
from cluster.gateway.admission import Admitted, Wishes
from cluster.gateway.admit import admit, check_place
from cluster.gateway.pool import RouterPool
from cluster.gateway.run import Run
from cluster.gateway.served import ServedModel
from cluster.gateway.status import Context, answering
from cluster.gateway.writer import Writer
from cluster.types import MOST_ALTERNATIVES, RequestId
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc

UNREACHABLE = "unreachable: an error ends the RPC"


class GenerationService(generation_pb2_grpc.GenerationServicer):
    """config: its limits."""

    def __init__(self, served: ServedModel, pool: RouterPool, config: GatewayConfig) -> None:
        self._served = served
        self._pool = pool
        self._config = config

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> None:  # type: ignore[override]
        async with answering(context) as answer:
            self._check_model(request)
            wishes = self._wishes(request)
            prompt = await messages.prompt_of(self._served, request)
            await self._stream(await self._admit(request, prompt, wishes), context, answer)

    async def Chat(self, request: pb.ChatRequest, context: Context) -> None:  # type: ignore[override]
        async with answering(context) as answer:
            self._check_model(request)
            wishes = self._wishes(request)
            prompt = await messages.chat_prompt_of(self._served, request)
            await self._stream(await self._admit(request, prompt, wishes), context, answer)

    async def Score(self, request: pb.ScoreRequest, context: Context) -> pb.ScoreResponse:
        async with answering(context):
            prompt = await self._whole_prompt(request)
            if not 0 <= request.top_logprobs <= MOST_ALTERNATIVES:
                raise InvalidRequest(
                    f"top_logprobs is {request.top_logprobs}; it must be between 0 and {MOST_ALTERNATIVES}"
                )
            priority = admission.check_priority(request.priority)
            values, alternatives = await whole.score(self._pool, prompt, request.top_logprobs, priority)
            return pb.ScoreResponse(
                model=self._served.name,
                token_ids=prompt,
                logprobs=values.tolist(),
                alternatives=messages.alternatives_of(alternatives),
            )
        raise AssertionError(UNREACHABLE)

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        async with answering(context):
            prompt = await self._whole_prompt(request)
            priority = admission.check_priority(request.priority)
            values = await whole.embed(self._pool, prompt, request.normalise, priority)
            return pb.EmbedResponse(
                model=self._served.name, prompt_tokens=len(prompt), values=values.tolist()
            )
        raise AssertionError(UNREACHABLE)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        async with answering(context):
            admission.check_model(request.model, self._served.name)
            return pb.TokenizeResponse(
                model=self._served.name,
                token_ids=await messages.prompt_of(self._served, request),
                context=self._served.limits.context,
                chat_template=self._served.template is not None,
            )
        raise AssertionError(UNREACHABLE)

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        async with answering(context):
            admission.check_model(request.model, self._served.name)
            ids = admission.check_ids(request.token_ids, self._served.limits)
            return pb.DetokenizeResponse(model=self._served.name, text=await self._served.detokenise(ids))
        raise AssertionError(UNREACHABLE)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.ModelInfo:
        async with answering(context):
            admission.check_model(request.model, self._served.name)
            return messages.model_info(self._served, self._config, self._pool.tiers)
        raise AssertionError(UNREACHABLE)

    async def Abort(self, request: pb.AbortRequest, context: Context) -> pb.AbortResponse:
        async with answering(context):
            if not request.request_id:
                raise InvalidRequest("request_id is empty; name the request to abort")
            return pb.AbortResponse(aborted=self._pool.abort(RequestId(request.request_id)))
        raise AssertionError(UNREACHABLE)

    def _check_model(self, request: pb.GenerateRequest | pb.ChatRequest) -> None:
        admission.check_weights(request.weights, request.resume_from, self._served.weights)
        admission.check_model(request.model, self._served.name)

    def _wishes(self, request: pb.GenerateRequest | pb.ChatRequest) -> Wishes:
        """Raises what refuses it before its prompt is read. Who resumes may have a place, or take that of the
        stream before."""
        wishes = messages.wishes_of(request.sampling, request.priority)
        if not (request.resume_from or request.resume_window_s):
            check_place(self._pool, wishes)
        return wishes

    async def _admit(
        self, request: pb.GenerateRequest | pb.ChatRequest, prompt: list[int], wishes: Wishes
    ) -> Admitted:
        return await admit(
            self._served,
            prompt,
            wishes,
            request_id=request.request_id,
            tier=request.tier,
            resume_from=request.resume_from,
            resume_window_s=admission.check_window(
                request.resume_window_s, self._config.max_resume_s, _samples(request)
            ),
            resumed_ids=request.resumed_ids,
        )

    async def _stream(self, admitted: Admitted, context: Context, answer: answering) -> None:
        with (
            Run(self._served, self._pool, admitted) as run,
            Writer(context, self._config.reader_s) as writer,
        ):
            await writer.open()
            await writer.write(pb.GenerateResponse(start=messages.start_of(self._served, admitted)))
            async for delta in run:
                await writer.write(messages.response_of(delta))
                answer.emitted += len(delta.token_ids)

    async def _whole_prompt(self, request: pb.ScoreRequest | pb.EmbedRequest) -> tuple[int, ...]:
        """Of a request that generates nothing."""
        admission.check_model(request.model, self._served.name)
        ids = await messages.prompt_of(self._served, request)
        return admission.check_prompt(ids, self._served.limits, room=0)


def _samples(request: pb.GenerateRequest | pb.ChatRequest) -> int:
    return request.sampling.n if request.sampling.HasField("n") else 1
