"""What a model asks of a fleet, and what the machines of a fleet file offer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.balance.fleet import Devices, Integers
from cluster.experiments.sim.inputs import Work
from cluster.experiments.sim.model import Device, Model
from cluster.experiments.sim.profiles import PROFILES
from cluster.fleet.file import DeviceClass, FleetFile, Host
from cluster.types import NodeId

UNKNOWN = DeviceClass.n100
"""Taken for a machine whose `device` the fleet file does not say."""


@dataclass(frozen=True, eq=False)
class Needs:
    """Of one model. expert_bytes: [layers, experts] int64, a dense layer is a row of zeros; top_k: experts a
    row; hidden, width: of an expert's matrices; trunk_bytes: that every router holds; page_bytes: of one KV
    page."""

    name: str
    expert_bytes: Integers
    top_k: int
    hidden: int
    width: int
    trunk_bytes: int
    page_bytes: int = 0

    @property
    def sparse_layers(self) -> int:
        return int(self.expert_bytes.any(axis=1).sum())

    @property
    def model(self) -> Model:
        """As the simulator sees it: all experts of the mean size."""
        mean = float(self.expert_bytes[self.expert_bytes > 0].mean())
        return Model(self.hidden, self.width, bits=8 * mean / (3 * self.hidden * self.width))


@dataclass(frozen=True)
class Node:
    """An expert node that there is or might be. site: machines of one have fast links between them."""

    name: str
    device: Device
    site: str = ""
    kind: DeviceClass = UNKNOWN


def nodes_of(fleet: FleetFile) -> tuple[Node, ...]:
    return tuple(_node(host) for host in fleet.nodes)


def assumed(fleet: FleetFile) -> tuple[str, ...]:
    """Names of the nodes whose class the file does not say."""
    return tuple(host.name for host in fleet.nodes if not host.device)


def router_link(fleet: FleetFile) -> float:
    """Bytes per second of the slowest link of a machine with routers."""
    return min(_class(host).bandwidth for host in fleet.hosts if host.routers)


def _node(host: Host) -> Node:
    return Node(host.name, _class(host), host.labels.get("site", ""), host.device or UNKNOWN)


def _class(host: Host) -> Device:
    base = PROFILES[host.device or UNKNOWN]
    link = float(host.link_bytes_per_s) or base.bandwidth
    return replace(base, memory=host.memory_bytes, bandwidth=link)


def devices_of(needs: Needs, nodes: Sequence[Node], rows: float) -> Devices:
    """As placement sees the nodes. rows: that an expert gets at a time."""
    sites = sorted({node.site for node in nodes})
    return Devices(
        tuple(NodeId(node.name) for node in nodes),
        np.array([node.device.row_rate(needs.model, rows) for node in nodes]),
        np.array([node.device.memory for node in nodes], np.int64),
        np.array([node.device.bandwidth for node in nodes]),
        np.array([sites.index(node.site) for node in nodes], np.int64),
    )


def draw_work(needs: Needs, streams: int, steps: int, seed: int = 0) -> Work:
    """Rows of steps in which every stream makes one token, experts drawn uniformly without repetition."""
    layers, experts = needs.expert_bytes.shape
    rows = np.zeros((steps, layers, experts), np.int64)
    draw = np.random.default_rng(seed)
    sparse = np.flatnonzero(needs.expert_bytes.any(axis=1))
    for step in range(steps):
        for layer in sparse:
            chosen = np.argpartition(draw.random((streams, experts)), needs.top_k - 1)[:, : needs.top_k]
            rows[step, layer] = np.bincount(chosen.ravel(), minlength=experts)
    return Work(rows, np.full(steps, streams, np.int64))


def rows_at_a_time(needs: Needs, streams: int) -> float:
    """Mean rows of an expert in a step, of the experts that have any: uniform routing."""
    share: float = needs.top_k / needs.expert_bytes.shape[1]
    return streams * share / (1 - float((1 - share) ** streams))
