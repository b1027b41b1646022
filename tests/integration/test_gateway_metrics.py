"""What a scrape finds, and that the shipped dashboard and alerts ask for nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from cluster.balance.load import LoadStats, NodeLoad
from cluster.gateway.service import GatewayService
from cluster.types import NodeId
from support.fake_router import FakeRouter
from support.gateways import wait_until
from support.http import serving

DEPLOY = Path(__file__).parents[2] / "deploy"
ROUTER = {"kv_pages_total": 10, "kv_pages_used": 4, "preemptions": 2, "steps": 70, "rows": 90, "running": 1}
NODE = {"rows": 5, "waiting_rows": 3, "hits": 8, "misses": 2, "evictions": 1, "resident_bytes": 4096}
EXPECTED = {
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "prompt_tokens",
    "generation_tokens",
}
Served = tuple[GatewayService, httpx.Client]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    rows = np.array([[4.0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    nodes = {
        NodeId("n0"): NodeLoad(messages=4, rows=6, service_s=0.02, trips=2, link_s=0.001, bytes=4096),
        NodeId("n1"): NodeLoad(rows=2),
    }
    load = LoadStats(64.0, 2.0, 4.0, 4.0, rows, np.ones(3), nodes)
    members = [
        {"id": "r0", "role": "router", "health": "alive", "stats": ROUTER},
        {"id": "n0", "role": "node", "health": "alive", "stats": NODE | {"restarts": 0, "memory_bytes": 0}},
        {"id": "n1", "role": "node", "health": "dead", "stats": {}},
    ]
    with FakeRouter() as router, serving(router) as (service, client):
        service.tell({"members": members, "load": load.to_wire()})
        body = {"prompt": "abc", "max_tokens": 5, "temperature": 0}
        assert client.post("/v1/completions", json=body).status_code == 200
        assert client.post("/v1/completions", json=body | {"n": 2, "stop": ["bc"]}).status_code == 200
        yield service, client


def scrape(client: httpx.Client, path: str = "/metrics") -> dict[tuple[str, ...], float]:
    """Value by (sample, then its label values in the order of their names)."""
    families = text_string_to_metric_families(client.get(path).text)
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def test_requests_appear_under_both_names_alike(served: Served) -> None:
    values = scrape(served[1])
    for prefix in ("vllm:", "moemesh_"):
        assert values[f"{prefix}prompt_tokens_total", "tiny"] == 9
        assert values[f"{prefix}request_success_total", "length", "tiny"] == 1
        assert values[f"{prefix}request_success_total", "stop", "tiny"] == 2
        assert values[f"{prefix}time_to_first_token_seconds_count", "tiny"] == 3
        assert values[f"{prefix}e2e_request_latency_seconds_bucket", "+Inf", "tiny"] == 3
        assert values[f"{prefix}num_requests_running", "tiny"] == 0
        assert values[f"{prefix}kv_cache_usage_perc", "tiny"] == 0.4
        assert values[f"{prefix}num_preemptions_total", "tiny"] == 2
    tokens = values["vllm:generation_tokens_total", "tiny"]
    assert values["vllm:inter_token_latency_seconds_count", "tiny"] == tokens - 3
    assert values["moemesh_ready", "tiny"] == 1


def test_the_names_that_dashboards_know_are_there(served: Served) -> None:
    families = {f.name for f in text_string_to_metric_families(served[1].get("/metrics").text)}
    assert {f"vllm:{name}" for name in EXPECTED} | {f"moemesh_{name}" for name in EXPECTED} <= families


def test_what_the_controller_told_is_published(served: Served) -> None:
    values = scrape(served[1])
    assert values["moemesh_member_up", "n1", "node"] == 0
    assert values["moemesh_node_cache_misses_total", "n0"] == 2
    assert values["moemesh_node_row_share", "n0"] == 0.75
    assert values["moemesh_node_dispatch_seconds", "n0"] == 0.005
    assert values["moemesh_link_round_trip_seconds", "n0"] == pytest.approx(0.0005)
    assert values["moemesh_link_bytes_per_dispatch", "n0"] == 2048
    assert values["moemesh_link_bytes_per_dispatch", "n1"] == 0
    assert values["moemesh_layer_load_imbalance", "0"] == 4
    assert values["moemesh_layer_load_imbalance", "2"] == 1
    assert ("moemesh_layer_load_imbalance", "1") not in values
    experts = scrape(served[1], "/metrics/experts")
    assert experts["moemesh_expert_rows_per_step", "0", "0"] == 2
    assert len(experts) == 8


def test_openmetrics_is_spoken_to_who_asks(served: Served) -> None:
    response = served[1].get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert "openmetrics-text" in response.headers["content-type"]
    assert response.text.endswith("# EOF\n")


def test_a_running_and_a_waiting_request_are_told_apart() -> None:
    with FakeRouter(paused=True) as router, serving(router) as (_, client):
        body = {"prompt": "abc", "max_tokens": 9, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as response:
            wait_until(lambda: len(router.running) == 1, "the request")
            assert scrape(client)["vllm:num_requests_waiting", "tiny"] == 1
            router.step()
            texts = response.iter_text()
            next(texts)
            values = scrape(client)
            assert values["vllm:num_requests_waiting", "tiny"] == 0
            assert values["vllm:num_requests_running", "tiny"] == 1


def queries() -> dict[str, str]:
    """PromQL by the panel or alert that asks it."""
    dashboard = json.loads((DEPLOY / "grafana" / "moemesh.json").read_text())
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    }
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    return found | {rule["alert"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}


def test_dashboard_and_alerts_ask_for_metrics_that_exist(served: Served) -> None:
    names = {"up"}
    for path in ("/metrics", "/metrics/experts"):
        for family in text_string_to_metric_families(served[1].get(path).text):
            suffix = "_total" if family.type == "counter" else ""
            names |= {family.name + suffix, f"{family.name}_bucket"}
    asked = queries()
    assert len(asked) > 20
    for title, query in asked.items():
        used = set(re.findall(r"\b(?:vllm:|moemesh_)\w+", query))
        assert used <= names, f"{title} asks for {sorted(used - names)}"


def test_the_dashboard_has_what_grafana_needs() -> None:
    dashboard: Any = json.loads((DEPLOY / "grafana" / "moemesh.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["type"] == "row" or panel["targets"]
    covered = [(p["gridPos"]["x"] + x, p["gridPos"]["y"]) for p in panels for x in range(p["gridPos"]["w"])]
    assert len(set(covered)) == len(covered), "panels overlap"


def test_every_alert_says_what_to_do() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())
    for rule in rules["groups"][0]["rules"]:
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")


def test_prometheus_accepts_the_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    config = DEPLOY / "prometheus" / "prometheus.yml"
    done = subprocess.run(
        [promtool, "check", "config", str(config)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
