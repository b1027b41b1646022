"""inference.GRPCInferenceService: the open inference protocol v2, with Triton's stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from google.protobuf.message import DecodeError

import cluster
from cluster.errors import DeadlineExceeded, InvalidRequest, MoemeshError, SlowReader
from cluster.gateway import admission
from cluster.gateway import open_inference_model as describe
from cluster.gateway.admission import Admitted
from cluster.gateway.admit import admit, check_place
from cluster.gateway.caller import set_time_left
from cluster.gateway.front import Front
from cluster.gateway.run import Delta, Run
from cluster.gateway.status import Context, answering, line_of
from cluster.gateway.text_tensors import FINAL, Answers, TextRequest, read_request
from cluster.gateway.writer import Writer
from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc

Send = Callable[[pb.ModelStreamInferResponse], Awaitable[None]]


class OpenInferenceService(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """reader_s: as in GatewayConfig."""

    def __init__(self, front: Front, reader_s: float) -> None:
        self._front = front
        self._reader_s = reader_s
        self._served = front.served
        self._pool = front.pool

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._front.readiness.ready)

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        async with answering(context):
            admission.check_model(request.name, self._served.name, request.version)
        return pb.ModelReadyResponse(ready=self._front.readiness.ready)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=describe.PLATFORM, version=cluster.__version__, extensions=describe.EXTENSIONS
        )

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        async with answering(context):
            admission.check_model(request.name, self._served.name, request.version)
        return describe.metadata(self._front)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        async with answering(context):
            admission.check_model(request.name, self._served.name, request.version)
        return pb.ModelConfigResponse(config=describe.config(self._front))

    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, context: Context
    ) -> pb.ModelStatisticsResponse:
        async with answering(context):
            admission.check_model(request.name, self._served.name, request.version)
        return pb.ModelStatisticsResponse(model_stats=[describe.statistics(self._front)])

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        async with answering(context):
            if request.repository_name:
                raise InvalidRequest("there is one repository; leave repository_name empty")
        return pb.RepositoryIndexResponse(models=describe.index(self._front, request.ready))

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        async with answering(context):
            text, admitted = await self._admit(request)
            if text.stream:
                raise InvalidRequest("input 'stream' is true; ModelStreamInfer streams, ModelInfer cannot")
            async with _within(text.timeout_s):
                with Run(self._served, self._pool, admitted) as run:
                    whole = await _whole(run)
            return self._answers(request, text, admitted).of(whole)
        raise AssertionError("unreachable: an error ends the RPC")

    async def ModelStreamInfer(  # type: ignore[override]
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> None:
        """Requests run side by side; it ends when the client has closed its side."""
        lock = asyncio.Lock()

        async def send(response: pb.ModelStreamInferResponse) -> None:
            async with lock:  # gRPC allows one write at a time
                await writer.write(response)

        async with answering(context):
            with Writer(context, self._reader_s) as writer:
                await writer.open()
                try:
                    async with asyncio.TaskGroup() as requests:
                        async for request in request_iterator:
                            requests.create_task(self._stream_one(request, send))
                except ExceptionGroup as errors:
                    if writer.error is not None:
                        raise writer.error from None
                    if errors.subgroup(DecodeError) is not None:
                        raise InvalidRequest("what was sent is no ModelInferRequest") from None
                    raise

    async def _stream_one(self, request: pb.ModelInferRequest, send: Send) -> None:
        """A bad request is answered inside the stream, which stays open for the others."""
        try:
            text, admitted = await self._admit(request)
            answers = self._answers(request, text, admitted)
            async with _within(text.timeout_s):
                with Run(self._served, self._pool, admitted) as run:
                    await self._stream_run(run, text, answers, send)
        except SlowReader:
            raise  # nobody would read it inside the stream
        except MoemeshError as error:
            failed = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            failed.parameters[FINAL].bool_param = True
            message = f"[{error.code}] {line_of(error)}"
            await send(pb.ModelStreamInferResponse(error_message=message, infer_response=failed))

    async def _stream_run(self, run: Run, text: TextRequest, answers: Answers, send: Send) -> None:
        if text.stream:
            async for delta in run:
                last = delta.outcome is not None and not text.empty_final
                await send(_streamed(answers.of(delta), final=last))
        else:
            await send(_streamed(answers.of(await _whole(run)), final=not text.empty_final))
        if text.empty_final:
            await send(_streamed(answers.empty(), final=True))

    async def _admit(self, request: pb.ModelInferRequest) -> tuple[TextRequest, Admitted]:
        served = self._served
        admission.check_model(request.model_name, served.name, request.model_version)
        text = read_request(request)
        check_place(self._pool, text.wishes)
        # The client's id is for its own book-keeping and often repeats; ours must be unique, and is drawn.
        return text, await admit(served, await served.tokenise(text.text), text.wishes)

    def _answers(self, request: pb.ModelInferRequest, text: TextRequest, admitted: Admitted) -> Answers:
        return Answers(self._served.name, request.id, len(admitted.prompt_ids), text.outputs)


@asynccontextmanager
async def _within(timeout_s: float | None) -> AsyncIterator[None]:
    """Raises DeadlineExceeded if the body takes longer. A request that would wait for longer is refused."""
    if timeout_s is not None:
        set_time_left(timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise DeadlineExceeded(f"it took longer than its time-out of {timeout_s:g} s") from None


async def _whole(run: Run) -> Delta:
    """All of a generation as one delta."""
    whole = Delta()
    async for delta in run:
        whole.text += delta.text
        whole.token_ids += delta.token_ids
        whole.logprobs += delta.logprobs
        whole.alternatives += delta.alternatives
        whole.outcome = delta.outcome
    return whole


def _streamed(response: pb.ModelInferResponse, final: bool) -> pb.ModelStreamInferResponse:
    response.parameters[FINAL].bool_param = final
    return pb.ModelStreamInferResponse(infer_response=response)
