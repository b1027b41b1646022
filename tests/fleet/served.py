"""A cluster over the hosts of a bed, without Ray: controller, nodes, a router, and streams through it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.experiments.live.streams import Stream
from cluster.library.bundled import open_model
from fleet.bed import Bed
from fleet.hosts import Host, Process
from fleet.role import RoleSpec

HERE = Path(__file__).parent
PORT = 7700
READY_S, STEPS_S, POLL_S, ENDS_S = 90.0, 60.0, 0.1, 30.0


@dataclass(frozen=True)
class Served:
    """head: where the controller is, and clients. processes: of the roles, by name; logs: their folder."""

    bed: Bed
    head: Host
    library: Path
    logs: Path
    processes: Mapping[str, Process]

    def status(self) -> dict[str, Any]:
        """What the controller says of the cluster."""
        controller = self.processes["controller"]
        controller.input.write("\n")
        controller.input.flush()
        answer: dict[str, Any] = json.loads(controller.output.readline())
        return answer

    def router_address(self) -> str:
        return next(str(one["address"]) for one in self.status()["members"] if one["role"] == "router")

    def gateway_addresses(self) -> list[str]:
        return [str(one["address"]) for one in self.status()["members"] if one["role"] == "gateway"]

    def wait_steps(self, steps: int, router: str = "") -> None:
        """Until that router, "" for the first one, has gone so many further."""
        wanted = self._router("steps", router) + steps
        self._wait(lambda: self._router("steps", router) >= wanted, f"{steps} steps", STEPS_S)

    def wait_running(self, streams: int) -> None:
        """Until so many sequences are in the router's batch."""
        self._wait(lambda: self._router("running") >= streams, f"{streams} streams at once", STEPS_S)

    def wait_streams(self, streams: int, gateway: str) -> None:
        """Until a gateway serves so many."""

        def happens() -> bool:
            members = {one["id"]: one for one in self.status()["members"]}
            return int(members[gateway]["stats"].get("outstanding", 0)) >= streams

        self._wait(happens, f"{streams} streams at {gateway}", STEPS_S)

    def wait_ready(self, members: int) -> None:
        self._wait(lambda: sum(one["ready"] for one in self.status()["members"]) >= members, "ready", READY_S)

    def _router(self, count: str, name: str = "") -> int:
        members = self.status()["members"]
        routers = (one for one in members if one["role"] == "router" and name in ("", one["id"]))
        return next(int(one["stats"].get(count, 0)) for one in routers)

    def _wait(self, happens: Callable[[], bool], what: str, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while not happens():
            assert time.monotonic() < deadline, f"not {what} in {within_s:g} s: {self.status()}"
            time.sleep(POLL_S)

    @contextmanager
    def streams(self, streams: int, tokens: int, gateways: Sequence[str] = ()) -> Iterator[list[Stream]]:
        """Keep so many streams going while the context lasts; the list is filled when it ends. gateways:
        addresses, for streams that go on at another one; none: straight from the router."""
        script, address = (
            ("resuming.py", ",".join(gateways)) if gateways else ("client.py", self.router_address())
        )
        command = [sys.executable, str(HERE / script), address, str(self.library)]
        client = self.head.spawn([*command, str(streams), str(tokens)], self.logs / "client.err")
        found: list[Stream] = []
        try:
            assert client.output.readline() == "asks\n", (self.logs / "client.err").read_text()
            yield found
            client.input.close()
            found += [Stream(**json.loads(line)) for line in client.output]
            status = client.wait(ENDS_S)
            assert status == 0, (self.logs / "client.err").read_text()
        finally:
            client.close()


@contextmanager
def served(
    bed: Bed,
    nodes: Sequence[str],
    router: str = "",
    *,
    head: str = "",
    fronts: Sequence[str] = (),
    copies: int = 1,
    library: Path | None = None,
    engine: Mapping[str, Any] | None = None,
) -> Iterator[Served]:
    """A node on each of the hosts `nodes`, the controller and a router on the host `router`; all ready.

    They are named as their hosts, the router "router". library: its folder, None for the bundled model. head,
    fronts: in place of `router`, where the controller is, and hosts with a router and a gateway each, named
    after them.
    """
    library = library or open_model().path
    logs = bed.folder / "logs"
    logs.mkdir(exist_ok=True)
    hub = bed.hosts[head or router]
    wanted = [(hub, "controller", "controller")]
    wanted += [(bed.hosts[host], "node", f"node-{number}") for number, host in enumerate(nodes)]
    if router:
        wanted.append((hub, "router", "router"))
    wanted += [(bed.hosts[host], role, f"{role}-{host}") for host in fronts for role in ("router", "gateway")]
    common: dict[str, Any] = {
        "controller": f"{hub.address}:{PORT}",
        "library": str(library),
        "logs": str(logs),
        "nodes": len(nodes),
        "copies": copies,
        "engine": dict(engine or {}),
    }
    processes = {}
    try:
        for host, role, name in wanted:
            processes[name] = start(host, RoleSpec(role, name, host.address, **common))
        for name, process in processes.items():
            assert process.output.readline() == "starts\n", (logs / f"{name}.err").read_text()
        cluster = Served(bed, hub, library, logs, processes)
        cluster.wait_ready(len(wanted) - 1)
        yield cluster
    finally:
        for process in reversed(processes.values()):
            process.close()


def start(host: Host, spec: RoleSpec) -> Process:
    """One role; it has begun when it prints "starts"."""
    command = [sys.executable, str(HERE / "role.py"), json.dumps(asdict(spec))]
    return host.spawn(command, Path(spec.logs) / f"{spec.name}.err")
