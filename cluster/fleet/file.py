"""The fleet file: which machines there are and what each shall be. docs/fleet.md lists every key.

Keys are the names of the fields. What the file says for the whole fleet (`engine`, `gateway`, …) are the same
dataclasses that a cluster on one machine is configured by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from cluster.config import (
    ControllerConfig,
    EngineConfig,
    GatewayConfig,
    LogFormat,
    NodeConfig,
    Rebalance,
    TracingConfig,
    WireSecurity,
)
from cluster.errors import ConfigError
from cluster.fleet.filecheck import check
from cluster.fleet.gateways import numbered
from cluster.values import NO_KEY, build, mapping
from cluster.yamlfile import at, load_yaml

OWN = ""
"""As the gateway's host: the address of the machine that it runs on."""

GATEWAY = GatewayConfig(host=OWN, http_host=OWN, http_port=GatewayConfig.port + 1)
CONTROLLER = ControllerConfig(rebalance=Rebalance.auto)


class HostRole(StrEnum):
    """hub: may run Ray's head, the controller, routers and gateways, beside experts. edge: experts only."""

    hub = "hub"
    edge = "edge"


class DeviceClass(StrEnum):
    """Machines whose speeds cluster/experiments/sim/profiles.py knows."""

    raspberry_pi_5 = "raspberry-pi-5"
    n100 = "n100"
    jetson_orin = "jetson-orin"
    server_16 = "server-16"
    near_memory = "near-memory"


@dataclass(frozen=True)
class PortUse:
    """Ports of one host: `count` from `first` on. key: what the file calls them."""

    key: str
    first: int
    count: int = 1

    @property
    def last(self) -> int:
        return self.first + self.count - 1


@dataclass(frozen=True)
class Ssh:
    """How `moemesh up --fleet` reaches a machine. user, key: "" leaves them to ssh and its own configuration.
    options: as for `ssh -o`."""

    user: str = ""
    key: str = ""
    port: int = 22
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ports:
    """The same on every machine, unless one says otherwise, so that one rule opens a firewall. `ray`,
    `workers` and `routers` are the first of several in a row.

    ray: Ray's own, RAY_PORTS in a row: the head's GCS (on the head only), then raylet, object manager,
    runtime environments' agent, dashboard agent's two, metrics. workers: of Ray's worker processes,
    WORKER_PORTS of them. routers: of the routers of one machine. spare: a second set of controller, node,
    blobs and routers is so far above, for those of another model while the fleet changes to it; 0 for none.
    """

    ray: int = 6379
    workers: int = 10002
    controller: int = 8470
    node: int = 8480
    blobs: int = 8481
    routers: int = 8490
    spare: int = 100


@dataclass(frozen=True)
class Redis:
    """Where the head's Ray keeps what it knows, instead of on the head's disk. address: HOST:PORT, "" for
    none. password_file: on the head; "" without a password."""

    address: str = ""
    username: str = ""
    password_file: str = ""


RAY_PORTS = 7
WORKER_PORTS = 100


@dataclass(frozen=True)
class Host:
    """One machine. Its name is that of its expert node, too.

    memory_bytes: hard limit of its expert weights; 0, on a hub, holds none.
    cores: compute threads of its expert node.
    head: Ray's head and the controller run here; where no hub says so, on the first one.
    routers, gateways: how many run here; of each one on a hub whose entry does not say.
    storage: folder on the machine for library and state. venv: of moemesh, on the machine.
    device: that `moemesh plan` takes its speeds from. link_bytes_per_s: of its network link; 0: its class's.
    labels: for operators, and told to Ray; machines of one `site` have fast links between them.
    """

    name: str
    address: str
    role: HostRole
    memory_bytes: int
    cores: int
    head: bool = False
    routers: int = 0
    gateways: int = 0
    storage: str = "/var/lib/moemesh"
    venv: str = "/opt/moemesh"
    device: DeviceClass | None = None
    link_bytes_per_s: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    ssh: Ssh = field(default_factory=Ssh)
    ports: Ports = field(default_factory=Ports)

    @property
    def hub(self) -> bool:
        return self.role is HostRole.hub

    @property
    def python(self) -> str:
        return f"{self.venv}/bin/python"

    @property
    def node_config(self) -> NodeConfig:
        """Of its expert node; there is none if memory_bytes is 0."""
        return NodeConfig(self.memory_bytes, self.cores, self.address, blob_port=self.ports.blobs)


@dataclass(frozen=True)
class FleetFile:
    """hosts: what `load` gives has routers, gateways and head decided, and of ssh and ports what the fleet
    says where the host says nothing.

    model: library folder on every machine, "" for the bundled one; a relative one is below the machine's
    storage. variant: of its experts, "" for the default.
    gateway.host, gateway.http_host: OWN unless the file says otherwise.
    generation: of the roles that are meant (cluster/fleet/generations.py), whose ports `hosts` has.
    """

    name: str
    hosts: tuple[Host, ...]
    model: str = ""
    variant: str = ""
    ssh: Ssh = field(default_factory=Ssh)
    ports: Ports = field(default_factory=Ports)
    engine: EngineConfig = field(default_factory=EngineConfig)
    gateway: GatewayConfig = field(default_factory=lambda: GATEWAY)
    controller: ControllerConfig = field(default_factory=lambda: CONTROLLER)
    wire_security: WireSecurity = WireSecurity.auto
    log_format: LogFormat = LogFormat.text
    tracing: TracingConfig = field(default_factory=TracingConfig)
    redis: Redis = field(default_factory=Redis)
    generation: int = field(default=0, metadata=NO_KEY)

    @property
    def head(self) -> Host:
        return next(host for host in self.hosts if host.head)

    @property
    def nodes(self) -> tuple[Host, ...]:
        """Machines with an expert node."""
        return tuple(host for host in self.hosts if host.memory_bytes)

    def gateway_of(self, host: Host, number: int = 0) -> GatewayConfig:
        """Of gateway `number` of a host: listens there, each on ports of its own."""
        own = self.gateway
        first = replace(own, host=own.host or host.address, http_host=own.http_host or host.address)
        return numbered(first, number)

    def role_ports(self, host: Host) -> tuple[PortUse, ...]:
        """Of one generation's controller, node and routers."""
        ports = host.ports
        uses = (
            PortUse("ports.controller", ports.controller, int(host.head)),
            PortUse("ports.node", ports.node, int(host.memory_bytes > 0)),
            PortUse("ports.blobs", ports.blobs, int(host.memory_bytes > 0)),
            PortUse("ports.routers", ports.routers, host.routers),
        )
        return tuple(use for use in uses if use.count)

    def ports_of(self, host: Host) -> tuple[PortUse, ...]:
        """Every port that a host listens on, SSH's included."""
        ports = host.ports
        uses = [
            PortUse("ssh.port", host.ssh.port),
            PortUse("ports.ray", ports.ray, RAY_PORTS),
            PortUse("ports.workers", ports.workers, WORKER_PORTS),
            *self.role_ports(host),
        ]
        if ports.spare:
            uses += [
                PortUse("ports.spare", use.first + ports.spare, use.count) for use in self.role_ports(host)
            ]
        for number in range(host.gateways):
            own = self.gateway_of(host, number)
            uses.append(PortUse("gateway.port", own.port))
            if own.http_port is not None:
                uses.append(PortUse("gateway.http_port", own.http_port))
        return tuple(use for use in uses if use.count)


def load(path: Path) -> FleetFile:
    """Read a fleet file and check it as a whole.

    Raises ConfigError, naming key and line, for a file that is no fleet: unknown or missing keys, wrong
    types, and what cluster/fleet/filecheck.py refuses.
    """
    values = mapping(load_yaml(path), str(path))
    entries = values.pop("hosts", None)
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"{at(values, 'hosts')}the fleet needs hosts, a list with at least one entry")
    fleet = build(FleetFile, values, "the fleet", hosts=())
    hosts = [_host(entry, number, fleet) for number, entry in enumerate(entries)]
    fleet = replace(fleet, hosts=_with_head(hosts))
    check(fleet, values, entries)
    return fleet


def _host(entry: object, number: int, fleet: FleetFile) -> Host:
    given = entry if isinstance(entry, dict) else {}
    name = given.get("name")
    where = f"host {name}" if isinstance(name, str) else f"entry {number + 1} of hosts"
    each = int(given.get("role") == HostRole.hub)
    return build(Host, entry, where, ssh=fleet.ssh, ports=fleet.ports, routers=each, gateways=each)


def _with_head(hosts: Sequence[Host]) -> tuple[Host, ...]:
    """The first hub is the head where no host says so."""
    if any(host.head for host in hosts):
        return tuple(hosts)
    first = next((host for host in hosts if host.hub), None)
    return tuple(replace(host, head=host is first) for host in hosts)
