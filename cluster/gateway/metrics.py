"""Prometheus metrics, made of what is counted elsewhere at the moment of a scrape.

Requests appear twice, with one count behind both: as `vllm:…`, the names that people's dashboards know, and
as `moemesh_…`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cluster.balance.load import LoadStats, NodeLoad
from cluster.gateway.cluster_view import Snapshot
from cluster.gateway.front import Front
from cluster.gateway.meter import FAILED, Histogram, Meter

PREFIXES = ("vllm:", "moemesh_")
ALIVE = "alive"

# Counts of a member's statistics that are published as they are: (role, statistic, name, what it is).
COUNTERS = (
    ("node", "rows", "node_rows", "Rows that expert nodes have computed."),
    ("node", "hits", "node_cache_hits", "Experts that were in memory when they were needed."),
    ("node", "misses", "node_cache_misses", "Experts that had to be read when they were needed."),
    ("node", "evictions", "node_cache_evictions", "Experts that were dropped to make room."),
    ("node", "restarts", "node_restarts", "Restarts of a node's process."),
    ("router", "steps", "router_steps", "Steps that routers have taken."),
    ("router", "rows", "router_rows", "Rows of all steps of routers."),
    ("router", "restarts", "router_restarts", "Restarts of a router's process."),
    *(
        (role, statistic, f"{role}_{statistic}", text)
        for role in ("node", "router")
        for statistic, text in (
            ("strangers_turned_away", "Connections ended before their peer was known for a member."),
            ("links_tampered_with", "Sealed links on whose way bytes were changed or lost."),
        )
    ),
)
GAUGES = (
    ("node", "waiting_rows", "node_waiting_rows", "Rows that wait at expert nodes."),
    ("node", "resident_bytes", "node_resident_bytes", "Expert weights in memory."),
    ("node", "memory_bytes", "node_memory_limit_bytes", "Hard limit of expert weights; 0 is none."),
    ("router", "kv_pages_used", "router_kv_pages_used", "KV pages that sequences hold."),
    ("router", "kv_pages_total", "router_kv_pages", "KV pages that there are."),
    ("router", "running", "router_running", "Sequences in the batch."),
    ("router", "waiting", "router_waiting", "Requests that wait for a place in the batch."),
)


class GatewayCollector(Collector):
    """Requests of this gateway, and the roles of the cluster as the controller last told."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._model = [front.served.name]

    def collect(self) -> Iterator[Metric]:
        cluster = self._front.cluster.now
        yield from self._requests(cluster)
        yield from self._gateway()
        yield from self._members(cluster)
        yield from self._load(cluster.load)

    def _requests(self, cluster: Snapshot) -> Iterator[Metric]:
        meter = self._front.pool.meter
        queued = self._front.pool.queued
        pages = cluster.total("router", "kv_pages_total")
        used = cluster.total("router", "kv_pages_used")
        preemptions = cluster.total("router", "preemptions")
        for prefix in PREFIXES:
            running = self._front.pool.sequences - queued
            yield self._gauge(prefix, "num_requests_running", "Sequences that are being generated.", running)
            yield self._gauge(prefix, "num_requests_waiting", "Sequences without a token yet.", queued)
            usage = used / pages if pages else 0.0
            yield self._gauge(prefix, "kv_cache_usage_perc", "KV pages in use, 1 is all of them.", usage)
            yield self._counter(prefix, "num_preemptions", "Sequences put back for want of KV.", preemptions)
            yield from self._counted(prefix, meter)

    def _counted(self, prefix: str, meter: Meter) -> Iterator[Metric]:
        yield self._counter(prefix, "prompt_tokens", "Tokens of prompts.", meter.prompt_tokens)
        yield self._counter(prefix, "generation_tokens", "Tokens generated.", meter.generated_tokens)
        finished = CounterMetricFamily(
            f"{prefix}request_success", "Sequences that ended well.", labels=["model_name", "finished_reason"]
        )
        for reason in sorted({"stop", "length", "aborted", *meter.finished} - {FAILED}):
            finished.add_metric([*self._model, reason], meter.finished.get(reason, 0))
        yield finished
        for name, text, histogram in (
            ("time_to_first_token_seconds", "From submission to the first token.", meter.first_token),
            ("inter_token_latency_seconds", "Between two tokens of a sequence.", meter.between_tokens),
            ("e2e_request_latency_seconds", "From submission to the end.", meter.whole),
        ):
            yield self._histogram(prefix, name, text, histogram)

    def _gateway(self) -> Iterator[Metric]:
        pool, meter = self._front.pool, self._front.pool.meter
        ready = float(self._front.readiness.ready)
        yield self._gauge("moemesh_", "ready", "1 while a token can be produced end to end.", ready)
        yield self._gauge("moemesh_", "routers_connected", "Routers with a connection.", pool.connected)
        yield self._counter(
            "moemesh_", "requests_failed", "Sequences that ended with an error.", meter.failed.count
        )
        yield self._counter(
            "moemesh_", "requests_replayed", "Sequences that outlived their router.", meter.replayed
        )
        refused = CounterMetricFamily(
            "moemesh_requests_refused", "Requests that no router heard of.", labels=["model_name", "reason"]
        )
        for reason, count in sorted(meter.refused.items()):
            refused.add_metric([*self._model, reason], count)
        yield refused

    def _members(self, cluster: Snapshot) -> Iterator[Metric]:
        up = GaugeMetricFamily("moemesh_member_up", "1 while it syncs.", labels=["role", "member"])
        for member in cluster.members:
            up.add_metric([member["role"], member["id"]], float(member["health"] == ALIVE))
        yield up
        for kind, published in ((CounterMetricFamily, COUNTERS), (GaugeMetricFamily, GAUGES)):
            for role, statistic, name, text in published:
                family = kind(f"moemesh_{name}", text, labels=[role])
                _add(family, cluster.of(role), statistic)
                yield family

    def _load(self, load: LoadStats | None) -> Iterator[Metric]:
        """Of late: a step counts half after some hundred others (cluster/dispatch/meter.py)."""
        if load is None:
            return
        total = sum(node.rows for node in load.nodes.values()) or 1.0
        for name, text, read in (
            ("node_row_share", "Part of all rows.", lambda node: node.rows / total),
            ("node_dispatch_seconds", "Mean computing time of a dispatch.", _mean("service_s", "messages")),
            ("link_round_trip_seconds", "Mean time of a dispatch on its way.", _mean("link_s", "trips")),
            ("link_bytes_per_dispatch", "Mean bytes of a dispatch, both ways.", _mean("bytes", "trips")),
        ):
            family = GaugeMetricFamily(f"moemesh_{name}", f"{text} Of late.", labels=["node"])
            for node, seen in load.nodes.items():
                family.add_metric([node], read(seen))
            yield family
        imbalance = GaugeMetricFamily(
            "moemesh_layer_load_imbalance", "Rows of the hottest expert over the mean.", labels=["layer"]
        )
        for layer, ratio in enumerate(load.imbalance.tolist()):
            if ratio:  # a dense layer has no experts
                imbalance.add_metric([str(layer)], ratio)
        yield imbalance

    def _gauge(self, prefix: str, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(prefix + name, text, labels=["model_name"])
        family.add_metric(self._model, value)
        return family

    def _counter(self, prefix: str, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(prefix + name, text, labels=["model_name"])
        family.add_metric(self._model, value)
        return family

    def _histogram(self, prefix: str, name: str, text: str, histogram: Histogram) -> Metric:
        family = HistogramMetricFamily(prefix + name, text, labels=["model_name"])
        family.add_metric(self._model, histogram.cumulative(), histogram.total)
        return family


def _mean(total: str, count: str) -> Callable[[NodeLoad], float]:
    """Of two decayed sums; 0 before the first."""
    return lambda node: getattr(node, total) / getattr(node, count) if getattr(node, count) else 0.0


def _add(family: Any, members: Iterable[Mapping[str, Any]], statistic: str) -> None:
    for member in members:
        if statistic in member["stats"]:
            family.add_metric([member["id"]], float(member["stats"][statistic]))


class ExpertCollector(Collector):
    """Mean rows a step of every expert, of late."""

    def __init__(self, front: Front) -> None:
        self._front = front

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "moemesh_expert_rows_per_step",
            "Mean rows a step, of late.",
            labels=["layer", "expert"],
        )
        load = self._front.cluster.now.load
        rows = np.zeros((0, 0)) if load is None else load.load
        for layer, experts in enumerate(rows):
            if experts.any():
                for expert, mean in enumerate(experts.tolist()):
                    family.add_metric([str(layer), str(expert)], mean)
        yield family
