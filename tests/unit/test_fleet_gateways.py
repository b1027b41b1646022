"""Several gateways on one machine: their ports, what the record and the commands say of them."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.cli import doctor
from cluster.cli.output import addresses_of
from cluster.config import ClusterConfig, GatewayConfig
from cluster.controller.members import Health, Role
from cluster.controller.state import Shape
from cluster.errors import ConfigError, InvalidRequest, PortInUse
from cluster.fleet import gateways, ports, processes
from cluster.fleet.folder import Entrance, Folder, Record
from cluster.fleet.starting import FAILING_S, lasting
from cluster.fleet.wanted import Plan, on_one_machine
from cluster.gateway.readiness import Readiness

HOST = "127.0.0.1"


def plan(count: int) -> Plan:
    config = ClusterConfig(nodes=1, gateways=count, gateway=GatewayConfig(port=8471, http_port=8472))
    return Plan(config, "/library", "model", "int8", Shape(1, 2, 4, (0, 1), 4096))


def wanted_gateways(count: int) -> list[tuple[str, int, int | None]]:
    wanted = on_one_machine(plan(count), HOST, 1, "/logs", "/epoch")
    found = [each for each in wanted if each.role == Role.GATEWAY.value]
    return [(each.name, each.arguments[1].port, each.arguments[1].http_port) for each in found]


def test_each_gateway_has_a_name_and_ports_of_its_own() -> None:
    assert wanted_gateways(1) == [("gateway", 8471, 8472)]
    assert wanted_gateways(3) == [
        ("gateway-0", 8471, 8472),
        ("gateway-1", 8473, 8474),
        ("gateway-2", 8475, 8476),
    ]


def test_any_port_stays_any_port_and_no_http_stays_none() -> None:
    assert gateways.numbered(GatewayConfig(port=0, http_port=0), 2) == GatewayConfig(port=0, http_port=0)
    assert gateways.numbered(GatewayConfig(port=9), 2) == GatewayConfig(port=13)


def test_the_taken_port_of_a_further_gateway_is_named() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUse, match=f"port {port} on {HOST} .*--grpc {HOST}:{port - 1}$"):
            gateways.check_ports(GatewayConfig(port=port - 2), 2)
    gateways.check_ports(GatewayConfig(port=0, http_port=0), 5)


@pytest.mark.parametrize(
    ("port", "http_port", "words"),
    [
        (7000, 7002, f"{HOST}:7002"),
        (7004, 7000, f"{HOST}:7004"),
        (7000, 7000, "7000"),
        (65_532, None, "65536"),
    ],
)
def test_gateways_that_would_take_each_other_s_ports_are_refused(port, http_port, words) -> None:
    with pytest.raises(ConfigError, match=words):
        gateways.check_ports(GatewayConfig(port=port, http_port=http_port), 3)


def member(number: int, **more: Any) -> dict[str, Any]:
    address = f"{HOST}:{8471 + 2 * number}"
    stats = {"http": f"{HOST}:{8472 + 2 * number}"}
    alive = {"ready": True, "health": Health.ALIVE.value}
    return {"id": f"gateway-{number}", "role": "gateway", "address": address, "stats": stats, **alive, **more}


def test_the_record_has_all_gateways(tmp_path) -> None:
    noted = gateways.noted([{"role": "node"}, member(0), member(1)])
    here = processes.mark(os.getpid())
    record = dataclasses.replace(Record("up", here, (here,)), **noted)
    folder = Folder(tmp_path / "state")
    folder.write(record)
    assert folder.read() == record
    assert record.entrances == (
        Entrance(f"{HOST}:8471", f"{HOST}:8472"),
        Entrance(f"{HOST}:8473", f"{HOST}:8474"),
    )
    assert addresses_of(record.gateways()) == (
        f"gRPC: {HOST}:8471, {HOST}:8473\n"
        f"OpenAI: http://{HOST}:8472/v1, http://{HOST}:8474/v1, metrics at /metrics\n"
    )
    without = dataclasses.replace(record, http="", further=())
    assert addresses_of(without.gateways()) == f"gRPC: {HOST}:8471\n"


def test_ports_of_other_machines_are_not_waited_for() -> None:
    with socket.create_server((HOST, 0)) as taken:
        here = f"{HOST}:{taken.getsockname()[1]}"
        assert ports.wait_free([here, "192.0.2.1:8471"], 0.0) == [here]


def test_doctor_names_the_gateway_that_is_away() -> None:
    listen = [{"grpc": f"{HOST}:{port}", "http": ""} for port in (8471, 8473)]
    whole = doctor._gateways(listen, [member(0), member(1)])
    assert (whole.good, whole.text) == (True, f"{HOST}:8471, {HOST}:8473")
    for away in ([member(0)], [member(0), member(1, ready=False)], [member(0), member(1, health="suspect")]):
        found = doctor._gateways(listen, away)
        assert (found.good, [one["ready"] for one in found.values]) == (False, [True, False])
        assert f"{HOST}:8473 (not ready)" in found.text


def test_an_error_that_lasts_ends_the_start_and_no_other() -> None:
    def failing(seconds: float, **more: Any) -> dict[str, Any]:
        return member(0, stats={"failing": [seconds, "no such expert"]}, **more)

    assert lasting(failing(FAILING_S + 1, ready=False)) == "no such expert"
    assert lasting(failing(FAILING_S - 1, ready=False)) == ""
    assert lasting(failing(FAILING_S + 1, ready=True)) == ""
    assert lasting(member(0, ready=False)) == ""


def test_a_gateway_says_for_how_long_its_probes_have_failed() -> None:
    now = 100.0
    errors: list[Exception | None] = [TimeoutError(), InvalidRequest("one"), InvalidRequest("two"), None]

    async def probe() -> None:
        nonlocal now
        now += 10.0
        if (error := errors.pop(0)) is not None:
            raise error

    pool: Any = SimpleNamespace(ready=True, probe=probe, meter=SimpleNamespace(last_token=float("-inf")))
    readiness = Readiness(pool, lambda ready: None, lambda: now)
    seen = []
    for _ in range(4):
        asyncio.run(readiness._check())
        seen.append(readiness.failing)
    assert seen == [(0.0, ""), (10.0, "one"), (20.0, "two"), (0.0, "")]
    assert readiness.ready
