"""What a router's spans tell of a request, with events and a clock of the test's own."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id

from cluster.dispatch.requests import pack_request, parse_request
from cluster.errors import NodeLost
from cluster.otel import Telemetry
from cluster.router.spans import RouterSpans
from cluster.types import Embedded, Emitted, EngineRequest, Failed, Finished, NodeId, RequestId

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = EngineRequest(RequestId("a"), (1, 2, 3), trace=f"00-{TRACE}-{PARENT}-01")
SERVICE = {NodeId("node-1"): (2.0, 0.5), NodeId("node-0"): (1.0, 0.25)}
KNOWN = {TRACED.request_id}


@pytest.fixture
def exporter():
    return InMemorySpanExporter()


@pytest.fixture
def spans(exporter):
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield RouterSpans(Telemetry(provider), lambda: SERVICE, itertools.count(1000, 10).__next__)
    provider.shutdown()


def step(spans, *events, running=KNOWN, known=KNOWN):
    spans.before_step()
    spans.see(events, running, known)


def begin(spans, request=TRACED):
    spans.arrived(request)
    spans.submitted(request)


def token():
    return Emitted(TRACED.request_id, 7, -0.5)


def test_queue_prefill_and_decode_follow_one_another(spans, exporter):
    begin(spans)  # at 1000
    step(spans, running=())  # 1010 … 1020: others are computed
    step(spans)  # 1030 … 1040: a first part of the prompt
    step(spans, token())  # 1050 … 1060
    step(spans, token())  # 1070 … 1080
    step(spans, token(), Finished(TRACED.request_id, "length", 3, 3))  # 1090 … 1100
    queue, prefill, decode = exporter.get_finished_spans()
    assert [(s.name, s.start_time, s.end_time) for s in (queue, prefill, decode)] == [
        ("router.queue", 1000, 1030),
        ("router.prefill", 1030, 1060),
        ("router.decode", 1060, 1100),
    ]
    for span in (queue, prefill, decode):
        assert format_trace_id(span.context.trace_id) == TRACE
        assert format_span_id(span.parent.span_id) == PARENT
    assert prefill.attributes["moemesh.steps"] == 2
    assert decode.attributes["moemesh.steps"] == 2
    assert (prefill.attributes["moemesh.tokens"], decode.attributes["moemesh.tokens"]) == (1, 3)
    assert decode.attributes["moemesh.nodes"] == ("node-0", "node-1")
    assert decode.attributes["moemesh.node_messages"] == (2, 4)
    assert decode.attributes["moemesh.node_service_s"] == (0.5, 1.0)
    assert decode.attributes["moemesh.finish_reason"] == "length"
    assert not spans._live


def test_what_generates_nothing_has_no_decode(spans, exporter):
    begin(spans)
    step(spans, Embedded(TRACED.request_id, [1.0], 3))
    assert [span.name for span in exporter.get_finished_spans()] == ["router.queue", "router.prefill"]


def test_an_error_is_the_status_of_the_phase_that_it_ends(spans, exporter):
    begin(spans)
    step(spans, token())
    step(spans, Failed(TRACED.request_id, NodeLost("node-1 is silent"), 1))
    last = exporter.get_finished_spans()[-1]
    assert last.name == "router.decode"
    assert last.status.description == "NodeLost: node-1 is silent"


def test_an_abort_ends_the_phase_under_way(spans, exporter):
    begin(spans)
    spans.see((), (), ())  # while it waits
    begin(spans)
    step(spans, token())
    spans.see((), KNOWN, ())
    names = [span.name for span in exporter.get_finished_spans()]
    assert names == ["router.queue", "router.queue", "router.prefill", "router.decode"]
    assert exporter.get_finished_spans()[-1].attributes["moemesh.finish_reason"] == "aborted"


def test_others_cost_and_leave_nothing(spans, exporter):
    plain = dataclasses.replace(TRACED, trace="")
    begin(spans, plain)
    step(spans, token())
    assert not exporter.get_finished_spans()
    assert spans._step_began == 0


def test_context_travels_only_where_there_is_one():
    header, payload = pack_request(1, TRACED)
    assert parse_request(TRACED.request_id, header, payload).trace == TRACED.trace
    assert "trace" not in pack_request(1, dataclasses.replace(TRACED, trace=""))[0]
