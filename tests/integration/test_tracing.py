"""Traces from a client's context over gateway and router to an OTLP receiver, over real sockets."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import format_span_id, format_trace_id

from cluster.config import EngineConfig, GatewayConfig, NodeConfig, TracingConfig
from cluster.controller.service import ControllerService
from cluster.controller.state import Shape
from cluster.errors import ConfigError
from cluster.fleet import control
from cluster.fleet.roles import node, process, router
from cluster.fleet.roles.process import Place
from cluster.gateway.service import GatewayService
from cluster.otel import Telemetry
from cluster.tracing import start_tracing
from support.engines import tiny_library
from support.fake_router import FakeRouter
from support.gateways import generation_stub, request, served_model, wait_until
from support.otlp import receiving

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"


@contextmanager
def traced(**config: Any) -> Iterator[tuple[GatewayService, FakeRouter, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service = GatewayService(
        GatewayConfig(port=0, http_port=0, **config), served_model(), telemetry=Telemetry(provider)
    )
    with FakeRouter() as fake:
        service.start()
        try:
            service.update({"r0": fake.address})
            wait_until(lambda: service.ready, "a router")
            yield service, fake, exporter
        finally:
            service.shutdown(grace_s=0.2)
            provider.shutdown()


def of(exporter: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in exporter.get_finished_spans() if span.name == name]


def test_a_client_s_context_goes_through_to_the_router() -> None:
    with traced() as (service, fake, exporter), generation_stub(service) as stub:
        answer = stub.Generate(
            request("abc", max_tokens=3, request_id="mine"), metadata=(("traceparent", SAMPLED),)
        )
        assert list(answer)[-1].HasField("finish")
        wait_until(lambda: of(exporter, "request"), "the span's end")
        [span], [queue] = of(exporter, "request"), of(exporter, "gateway.queue")
        assert (format_trace_id(span.context.trace_id), format_span_id(span.parent.span_id)) == (TRACE, SPAN)
        assert queue.parent.span_id == span.context.span_id
        assert span.start_time <= queue.start_time <= queue.end_time <= span.end_time
        assert span.attributes["moemesh.request_id"] == "mine"
        assert span.attributes["moemesh.tokens"] == 3
        assert span.attributes["moemesh.finish_reasons"] == ("length",)
        [submitted] = fake.counts.submitted
        assert submitted.asked.trace == f"00-{TRACE}-{format_span_id(span.context.span_id)}-01"


def test_http_headers_too_and_new_traces_without_any(caplog: pytest.LogCaptureFixture) -> None:
    body = {"prompt": "abc", "max_tokens": 2}
    with traced() as (service, _, exporter), caplog.at_level("INFO", "cluster.gateway.pool"):
        url = f"http://{service.http_address}/v1/completions"
        for headers in ({"traceparent": SAMPLED}, {}, {"traceparent": "00-broken"}):
            assert httpx.post(url, json=body, headers=headers).status_code == 200
        wait_until(lambda: len(of(exporter, "request")) == 3, "three spans")
        first, second, third = of(exporter, "request")
        assert format_trace_id(first.context.trace_id) == TRACE
        assert second.parent is None
        assert third.parent is None
        logged = [line.fields["trace_id"] for line in caplog.records if line.getMessage() == "request"]
        assert logged == [format_trace_id(span.context.trace_id) for span in (first, second, third)]


def test_what_a_client_does_not_sample_is_neither_recorded_nor_passed_on() -> None:
    with traced() as (service, fake, exporter), generation_stub(service) as stub:
        list(stub.Generate(request("abc", max_tokens=1), metadata=(("traceparent", UNSAMPLED),)))
        assert fake.counts.submitted[0].asked.trace == ""
        assert not exporter.get_finished_spans()


def test_a_refusal_is_an_error_span() -> None:
    with traced(window=1, max_queued=0) as (service, fake, exporter), generation_stub(service) as stub:
        fake._paused = True
        running = stub.Generate(request("abc", max_tokens=50))
        next(running)
        wait_until(lambda: fake.running, "the first request")
        with pytest.raises(grpc.RpcError):
            list(stub.Generate(request("abc", max_tokens=1)))
        [span] = of(exporter, "request")
        assert span.status.description.startswith("Overloaded: ")
        running.cancel()


def test_off_is_without_import_and_without_header_bytes() -> None:
    code = (
        "import sys, cluster.fleet.roles.gateway, cluster.fleet.roles.router\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert start_tracing(TracingConfig(), "gateway", "gateway") is None


def test_an_endpoint_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="--otlp"):
        start_tracing(TracingConfig("localhost:4317"), "gateway", "gateway")


def test_a_whole_cluster_sends_one_trace_by_otlp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "SYNC_PERIOD_S", 0.05)
    monkeypatch.setattr(process, "log_to_file", lambda *_: None)
    library = tiny_library(tmp_path / "models", "qwen3-tied-gqa")
    spec = library.spec
    shape = Shape(2, spec.layers, spec.experts, spec.sparse_layers)
    with receiving() as (receiver, endpoint):
        with ExitStack() as stack:
            controller = ControllerService(shape, epoch=1)
            address = controller.start()
            stack.callback(controller.shutdown)
            tracing, variant = TracingConfig(endpoint), library.manifest.default_variant
            places = [
                Place(name, address, str(library.path), variant, str(tmp_path), tracing=tracing)
                for name in ("node-0", "node-1", "router-0")
            ]
            for place in places[:2]:
                stack.callback(node.NodeRole(place, NodeConfig()).shutdown)
            routing = router.RouterRole(places[2], EngineConfig(kv_bytes=4 << 20))
            stack.callback(routing.shutdown)
            wait_until(lambda: routing.ready, "a ready router", 60.0)
            telemetry = start_tracing(tracing, "gateway", "gateway")
            assert telemetry is not None
            stack.callback(telemetry.shutdown)
            service = GatewayService(GatewayConfig(port=0), served_model(), telemetry=telemetry)
            service.start()
            stack.callback(service.shutdown, 0.2)
            service.update({"router-0": routing.address})
            wait_until(lambda: service.ready, "a ready gateway")
            with generation_stub(service) as stub:
                asked = request(token_ids={"ids": [1, 2, 3]}, max_tokens=5, ignore_eos=True)
                assert list(stub.Generate(asked, metadata=(("traceparent", SAMPLED),)))
        spans = {span.name: (role, span) for role, span in receiver.spans}
    assert {name: role for name, (role, _) in spans.items()} == {
        "request": "gateway",
        "gateway.queue": "gateway",
        "router.queue": "router",
        "router.prefill": "router",
        "router.decode": "router",
    }
    root = spans["request"][1]
    for _, span in spans.values():
        assert span.trace_id.hex() == TRACE
        assert span.parent_span_id.hex() == (SPAN if span is root else root.span_id.hex())
    decode = {each.key: each.value for each in spans["router.decode"][1].attributes}
    assert decode["moemesh.tokens"].int_value == 5
    assert decode["moemesh.steps"].int_value == 4
    assert [one.string_value for one in decode["moemesh.nodes"].array_value.values] == ["node-0", "node-1"]
    assert all(one.int_value > 0 for one in decode["moemesh.node_messages"].array_value.values)
    assert any(one.double_value > 0 for one in decode["moemesh.node_service_s"].array_value.values)
