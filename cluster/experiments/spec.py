"""An experiment as a YAML file: policies × traces × fleets × seeds. docs/experiments.md lists every key."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.balance.policies import resolve
from cluster.errors import ConfigError
from cluster.experiments.generators import Workload
from cluster.experiments.sim.control import Control
from cluster.experiments.sim.inputs import Fault, Host
from cluster.experiments.sim.model import Device, Model, Router
from cluster.experiments.sim.profiles import profile
from cluster.values import build, check_keys, mapping
from cluster.yamlfile import load_yaml

T = TypeVar("T")

EXACT = "cluster.experiments.gates:exact"
SHARINGS = ("equal", "speed", "profile")


@dataclass(frozen=True)
class TraceSpec:
    """A trace to generate, or the `file` of one (absolute)."""

    name: str
    generate: Workload | None = None
    file: str | None = None


@dataclass(frozen=True)
class FleetSpec:
    """memory: how the bytes for experts are shared out: "equal", in proportion to "speed", or what each
    "profile" has. spare: bytes for replicas as a part of the model's experts (not for "profile"). resident:
    part of its placed bytes that a device's expert cache holds; 1: all, no cache. library: whether every
    device has all experts on its disk. hosts: machines that several processes share."""

    name: str
    devices: tuple[Device, ...]
    memory: str = "equal"
    spare: float = 0.25
    resident: float = 1.0
    routers: int = 1
    router: Router = Router()  # noqa: RUF009  frozen
    faults: tuple[Fault, ...] = ()
    library: bool = True
    hosts: tuple[Host, ...] = ()

    def __post_init__(self) -> None:
        if not self.devices:
            raise ConfigError(f"fleet {self.name} has no devices")
        if self.memory not in SHARINGS:
            raise ConfigError(f"memory of fleet {self.name} is {self.memory!r}; it is one of {SHARINGS}")
        if self.spare < 0 or not 0 < self.resident <= 1:
            raise ConfigError(f"fleet {self.name} needs spare ≥ 0 and resident above 0 and at most 1")


@dataclass(frozen=True)
class PolicySpec:
    """placement, choice, gate: import paths "module:function"; gate_options: the gate's keywords."""

    name: str
    placement: str
    choice: str
    control: Control = Control()  # noqa: RUF009  frozen
    gate: str = EXACT
    gate_options: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Run:
    """One cell of the sweep. warmup: steps that no figure counts. live: on a real cluster of this machine."""

    policy: PolicySpec
    trace: TraceSpec
    fleet: FleetSpec
    model: Model
    seed: int
    warmup: int
    live: bool = False


@dataclass(frozen=True)
class Spec:
    name: str
    title: str
    policies: tuple[PolicySpec, ...]
    traces: tuple[TraceSpec, ...]
    fleets: tuple[FleetSpec, ...]
    seeds: tuple[int, ...]
    model: Model = Model()  # noqa: RUF009  frozen
    warmup: int = 0
    live: bool = False

    def runs(self) -> list[Run]:
        """All cells, those of one trace and seed together."""
        cells = itertools.product(self.traces, self.seeds, self.fleets, self.policies)
        return [
            Run(policy, trace, fleet, self.model, seed, self.warmup, self.live)
            for trace, seed, fleet, policy in cells
        ]


def read_spec(path: Path) -> Spec:
    """Raises ConfigError, naming key and place, for a file that is no spec, and UnknownPolicy."""
    values = mapping(load_yaml(path), str(path))
    check_keys(values, {field.name for field in fields(Spec)}, str(path))
    spec = Spec(
        name=_text(values, "name", str(path)),
        title=str(values.get("title", values["name"])),
        policies=_named(values, "policies", _policy),
        traces=_named(values, "traces", lambda each, where: _trace(each, where, path.parent)),
        fleets=_named(values, "fleets", _fleet),
        seeds=_seeds(values.get("seeds", [0])),
        model=build(Model, values.get("model", {}), "model"),
        warmup=_count(values.get("warmup", 0), "warmup"),
        live=_flag(values.get("live", False), "live"),
    )
    for policy in spec.policies:
        for function in (policy.placement, policy.choice, policy.gate):
            resolve(function)
    return spec


def _named(values: dict[str, Any], key: str, make: Callable[[dict[str, Any], str], T]) -> tuple[T, ...]:
    """A list of mappings, each with a name of its own."""
    given = values.get(key)
    if not isinstance(given, list) or not given:
        raise ConfigError(f"{key} must be a list with at least one entry")
    names = [_text(mapping(each, f"an entry of {key}"), "name", f"an entry of {key}") for each in given]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{key} has {twice[0]!r} twice; names must differ")
    return tuple(make(each, f"{key} {name!r}") for each, name in zip(given, names, strict=True))


def _text(values: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(values.get(key), str) or not values[key]:
        raise ConfigError(f"{where} needs a {key}")
    return str(values[key])


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{where} is {value!r}; it must be a whole number of 0 or more")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where} is {value!r}; it must be true or false")
    return value


def _seeds(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise ConfigError("seeds must be a list with at least one number")
    seeds = tuple(_count(each, "a seed") for each in value)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"a seed appears twice in {list(seeds)}")
    return seeds


def _policy(values: dict[str, Any], where: str) -> PolicySpec:
    check_keys(values, {"name", "placement", "choice", "control", "gate"}, where)
    gate = mapping(values.get("gate", {"function": EXACT}), f"gate of {where}")
    return PolicySpec(
        values["name"],
        _text(values, "placement", where),
        _text(values, "choice", where),
        build(Control, values.get("control", {}), f"control of {where}"),
        _text(gate, "function", f"gate of {where}"),
        tuple(sorted((key, float(value)) for key, value in gate.items() if key != "function")),
    )


def _trace(values: dict[str, Any], where: str, folder: Path) -> TraceSpec:
    check_keys(values, {"name", "generate", "file"}, where)
    if ("generate" in values) == ("file" in values):
        raise ConfigError(f"{where} needs either generate or file")
    if "file" in values:
        return TraceSpec(values["name"], file=str((folder / _text(values, "file", where)).resolve()))
    return TraceSpec(values["name"], build(Workload, values["generate"], f"generate of {where}"))


def _fleet(values: dict[str, Any], where: str) -> FleetSpec:
    for key in ("devices", "faults"):
        if not isinstance(values.get(key, []), list):
            raise ConfigError(f"{key} of {where} must be a list")
    devices, seats = _devices(values.get("devices", []), where)
    faults = [build(Fault, each, f"a fault of {where}") for each in values.get("faults", [])]
    costs = dict(mapping(values.get("router", {}), f"router of {where}"))
    hosts = _hosts(values.get("hosts", {}), seats, _seat(costs, f"router of {where}"), where)
    router = build(Router, costs, f"router of {where}")
    built = {"devices": devices, "faults": faults, "router": router, "hosts": hosts}
    return build(FleetSpec, {**values, **built}, where)


def _hosts(values: Any, seats: list[str | None], router: str | None, where: str) -> list[Host]:
    """seats: the host that each device names, None for a machine of its own; router: likewise."""
    given = mapping(values, f"hosts of {where}")
    for name in {*seats, router} - {None}:
        if name not in given:
            raise ConfigError(f"{where} has no host {name!r}; its hosts are {', '.join(given) or 'none'}")
    hosts = []
    for name, each in given.items():
        check_keys(mapping(each, f"host {name!r} of {where}"), {"cores"}, f"host {name!r} of {where}")
        devices = [number for number, seat in enumerate(seats) if seat == name]
        hosts.append(
            build(Host, {**each, "devices": devices, "routers": router == name}, f"host {name!r} of {where}")
        )
    return hosts


def _seat(given: dict[str, Any], where: str) -> str | None:
    """Take out the host that a process names; None for a machine of its own."""
    if "host" not in given:
        return None
    name = _text(given, "host", where)
    del given["host"]
    return name


def _devices(values: list[Any], where: str) -> tuple[list[Device], list[str | None]]:
    """Each device and the host that it names."""
    devices: list[Device] = []
    seats: list[str | None] = []
    for each in values:
        given = dict(mapping(each, f"a device of {where}"))
        seat = _seat(given, f"a device of {where}")
        same = _alike(given, where)
        devices += same
        seats += [seat] * len(same)
    return devices, seats


def _alike(given: dict[str, Any], where: str) -> tuple[Device, ...]:
    """`count` devices of a profile, any of its fields given anew; `speed`: a factor on what it computes and
    reads.
    """
    names = {field.name for field in fields(Device)}
    check_keys(given, names | {"profile", "count", "speed"}, f"a device of {where}")
    base = profile(_text(given, "profile", f"a device of {where}"))
    changes = {key: value for key, value in given.items() if key in names}
    own = {field.name: getattr(base, field.name) for field in fields(Device)} | changes
    factor = given.get("speed", 1.0)
    if not isinstance(factor, int | float) or not factor > 0:
        raise ConfigError(f"speed of a device of {where} is {factor!r}; it must be a number above 0")
    device: Device = build(Device, own, f"a device of {where}")
    device = replace(device, ops=device.ops * factor, read=device.read * factor)
    return (device,) * _count(given.get("count", 1), f"count of {where}")
