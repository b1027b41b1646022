"""Several gateways: which ports each has, and where all of them listen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cluster.config import GatewayConfig
from cluster.controller.members import Role
from cluster.errors import ConfigError
from cluster.fleet import ports
from cluster.fleet.folder import Entrance

PORTS_PER_GATEWAY = 2
"""gRPC's and HTTP's."""

LAST_PORT = 65_535


def numbered(config: GatewayConfig, number: int) -> GatewayConfig:
    """Gateway `number` of a machine, on ports of its own; of port 0 any free one. config: of number 0."""
    http_port = None if config.http_port is None else _shifted(config.http_port, number)
    return replace(config, port=_shifted(config.port, number), http_port=http_port)


def _shifted(port: int, number: int) -> int:
    return port + PORTS_PER_GATEWAY * number if port else 0


def check_ports(config: GatewayConfig, count: int) -> None:
    """Raises ConfigError if two of so many gateways would listen at one port, or one beyond the last;
    PortInUse, which names the port, if somebody else listens there."""
    wanted = list(_listens(config, count))
    places = [(host, port) for _, host, port, _ in wanted if port]
    for number, host, port, option in wanted:
        if port > LAST_PORT:
            raise ConfigError(
                f"port {port} of gateway {number} is beyond {LAST_PORT}; choose a lower {option}"
            )
        if places.count((host, port)) > 1:
            raise ConfigError(
                f"two of {count} gateways would listen at {host}:{port}, since each has ports "
                f"{PORTS_PER_GATEWAY} above the one before; move --grpc and --http apart, or together"
            )
    for number, host, port, option in wanted:
        ports.check_free(host, port, option, PORTS_PER_GATEWAY * number)


def _listens(config: GatewayConfig, count: int) -> Iterator[tuple[int, str, int, str]]:
    """(number of the gateway, host, port, the option that says so) of every port."""
    for number in range(count):
        one = numbered(config, number)
        yield number, one.host, one.port, "--grpc"
        if one.http_port is not None:
            yield number, one.http_host, one.http_port, "--http"


def noted(members: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Where the gateways listen, as fields of the record. members: as the controller knows them, in the order
    in which they are wanted."""
    first, *further = (
        Entrance(str(member["address"]), str(member["stats"].get("http", "")))
        for member in members
        if member["role"] == Role.GATEWAY
    )
    return {"grpc": first.grpc, "http": first.http, "further": tuple(further)}
