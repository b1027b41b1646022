"""OpenTelemetry as gateways and routers use it; the only module that imports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, format_trace_id, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cluster.config import TracingConfig
from kernels import __version__

SCOPE = "moemesh"
Value = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[float]
Attributes = Mapping[str, Value]

_W3C = TraceContextTextMapPropagator()


class Telemetry:
    """Makes spans. Times are nanoseconds since 1970; a provider sends them on a thread of its own."""

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer(SCOPE, __version__)

    @staticmethod
    def to(config: TracingConfig, role: str, name: str) -> Telemetry:
        """Send to the configured endpoint."""
        resource = Resource.create(
            {"service.name": SCOPE, "service.instance.id": name, "moemesh.role": role},
        )
        sampler = ParentBased(TraceIdRatioBased(config.ratio))
        provider = TracerProvider(sampler=sampler, resource=resource, shutdown_on_exit=False)
        exporter = OTLPSpanExporter(config.endpoint, insecure=config.endpoint.startswith("http://"))
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return Telemetry(provider)

    def begin(
        self, name: str, parent: Context, at: int, attributes: Attributes, *, server: bool = False
    ) -> Span:
        """server: it answers a request from outside."""
        kind = SpanKind.SERVER if server else SpanKind.INTERNAL
        return self._tracer.start_span(name, parent, kind, attributes, start_time=at)

    def whole(
        self, name: str, parent: Context, begin: int, end: int, attributes: Attributes, error: str = ""
    ) -> None:
        """A span that is over."""
        finish(self.begin(name, parent, begin, attributes), end, error)

    def shutdown(self) -> None:
        """Send what is left; waits for it a few seconds at most."""
        self._provider.shutdown()


def finish(span: Span, at: int, error: str = "") -> None:
    if error:
        span.set_status(Status(StatusCode.ERROR, error))
    span.end(at)


def context_of(traceparent: str, tracestate: str = "") -> Context:
    """What a W3C header says; a new trace where it is empty or broken."""
    return _W3C.extract({"traceparent": traceparent, "tracestate": tracestate}, Context())


def inside(span: Span) -> Context:
    return set_span_in_context(span, Context())


def traceparent_of(span: Span) -> str:
    """The W3C header that makes other spans children of this one; empty if it is not recorded."""
    if not span.is_recording():
        return ""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, inside(span))
    return carrier["traceparent"]


def trace_id_of(span: Span) -> str:
    """Empty if it is not recorded."""
    return format_trace_id(span.get_span_context().trace_id) if span.is_recording() else ""
