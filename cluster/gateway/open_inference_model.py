"""What the open inference protocol tells of a model: metadata, configuration, statistics, index."""

from __future__ import annotations

from typing import Any

from cluster.gateway.admission import MODEL_VERSION
from cluster.gateway.front import Front
from cluster.gateway.meter import Span
from cluster.gateway.text_tensors import INPUTS, OUTPUTS, REQUIRED
from protos import open_inference_pb2 as pb

PLATFORM = "moemesh"
EXTENSIONS = ("model_configuration", "statistics")
"""Of the protocol's, by the names that Triton gives them."""

READY, UNAVAILABLE = "READY", "UNAVAILABLE"
STRING = "TYPE_STRING"


def metadata(front: Front) -> pb.ModelMetadataResponse:
    tensor = pb.ModelMetadataResponse.TensorMetadata
    return pb.ModelMetadataResponse(
        name=front.served.name,
        versions=[MODEL_VERSION],
        platform=PLATFORM,
        inputs=[tensor(name=name, datatype=kind, shape=[1]) for name, (kind, _) in INPUTS.items()],
        outputs=[tensor(name=name, datatype=kind, shape=[1]) for name, kind in OUTPUTS.items()],
    )


def config(front: Front) -> pb.ModelConfig:
    """Decoupled: one request has as many answers as its stream has parts."""
    inputs = [
        pb.ModelInput(name=name, data_type=_data_type(kind), dims=[1], optional=name not in REQUIRED)
        for name, (kind, _) in INPUTS.items()
    ]
    outputs = [
        pb.ModelOutput(name=name, data_type=_data_type(kind), dims=[1]) for name, kind in OUTPUTS.items()
    ]
    limits = {"context": front.served.limits.context, "vocab": front.served.limits.vocab}
    return pb.ModelConfig(
        name=front.served.name,
        platform=PLATFORM,
        backend=PLATFORM,
        input=inputs,
        output=outputs,
        parameters={name: pb.ModelParameter(string_value=str(value)) for name, value in limits.items()},
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=True),
    )


def _data_type(datatype: str) -> Any:
    """A member of pb.DataType."""
    return getattr(pb, STRING if datatype == "BYTES" else f"TYPE_{datatype}")


def statistics(front: Front) -> pb.ModelStatistics:
    """Of this gateway since it started; steps are those of all routers."""
    meter = front.pool.meter
    return pb.ModelStatistics(
        name=front.served.name,
        version=MODEL_VERSION,
        last_inference=round(1e3 * meter.last_end),
        inference_count=meter.succeeded.count,
        execution_count=round(front.cluster.now.total("router", "steps")),
        inference_stats=pb.InferStatistics(
            success=_duration(meter.succeeded),
            fail=_duration(meter.failed),
            compute_infer=_duration(meter.succeeded),
        ),
    )


def _duration(span: Span) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=span.count, ns=round(1e9 * span.seconds))


def index(front: Front, only_ready: bool) -> list[pb.RepositoryIndexResponse.ModelIndex]:
    ready = front.readiness.ready
    if only_ready and not ready:
        return []
    return [
        pb.RepositoryIndexResponse.ModelIndex(
            name=front.served.name,
            version=MODEL_VERSION,
            state=READY if ready else UNAVAILABLE,
            reason="" if ready else "no router produces tokens",
        )
    ]
