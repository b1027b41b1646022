"""What no single key of a fleet file can show: hosts, roles, ports and labels that do not go together."""

from __future__ import annotations

import ipaddress
import itertools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from cluster.errors import ConfigError
from cluster.yamlfile import at

if TYPE_CHECKING:
    from cluster.fleet.file import FleetFile, Host, PortUse

HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
DNS_PART = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
DNS_NAME = re.compile(rf"(?=.{{1,253}}$){DNS_PART}(\.{DNS_PART})*")
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
"""Ray's and Kubernetes' rule for names and values of labels."""

LABEL_PREFIX = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
RESERVED_PREFIXES = ("ray.io", "moemesh")
MOST_PORT = 65535


def check(fleet: FleetFile, values: Any, entries: Sequence[Any]) -> None:
    """Raises ConfigError, naming key and line.

    values, entries: the file's mapping and those of its hosts, in the order of `fleet.hosts`.
    """
    _check_numbers(fleet, values, "the fleet")
    if not fleet.name:
        _refuse(values, "name", "name of the fleet is empty")
    lines = dict(zip((host.name for host in fleet.hosts), entries, strict=False))
    _check_unique(fleet.hosts, entries, "name", lambda host: host.name)
    for host in fleet.hosts:
        _check_host(host, lines[host.name])
    _check_unique(fleet.hosts, entries, "address", lambda host: _plain(host.address))
    _check_roles(fleet, values, lines)
    _check_redis(fleet, values)
    for host in fleet.hosts:
        _check_ports(fleet, host, values, lines[host.name])


def _refuse(values: Any, key: str, text: str) -> NoReturn:
    raise ConfigError(f"{at(values, key)}{text}")


def _check_numbers(config: Any, values: Any, where: str) -> None:
    """None of a fleet's numbers may be below 0, infinite or NaN, however deep."""
    for field in fields(config):
        value = getattr(config, field.name)
        inner = values.get(field.name) if isinstance(values, dict) else None
        if is_dataclass(value):
            _check_numbers(value, inner if inner is not None else values, f"{field.name} of {where}")
        elif isinstance(value, int | float) and not (value >= 0 and math.isfinite(value)):
            _refuse(values, field.name, f"{field.name} of {where} is {value}; it must be 0 or more")


def _check_host(host: Host, entry: Any) -> None:
    where = f"host {host.name}"
    _check_numbers(host, entry, where)
    if not HOST_NAME.fullmatch(host.name):
        rule = "lower-case letters, digits and -, at most 63, beginning and ending with no -"
        _refuse(entry, "name", f"name of {where} cannot be {host.name!r}; use {rule}")
    if problem := _address_problem(host.address):
        _refuse(entry, "address", f"address of {where} is {host.address!r}, {problem}")
    if host.cores < 1:
        _refuse(entry, "cores", f"cores of {where} is {host.cores}; it must be 1 or more")
    for key in ("storage", "venv"):
        if not getattr(host, key).startswith("/"):
            _refuse(entry, key, f"{key} of {where} must be an absolute path, as /var/lib/moemesh")
    _check_labels(host, entry)


def _address_problem(address: str) -> str:
    """ "" for an address or a name that other machines can use."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        numeric = re.fullmatch(r"[0-9.]+|.*:.*", address)
        fine = DNS_NAME.fullmatch(address) and not numeric
        return "" if fine else "which is no IP address and no name of a machine; ports have keys of their own"
    if found.is_unspecified or found.is_multicast:
        return "which is no machine's own"
    return ""


def _plain(address: str) -> str:
    """One spelling of an address."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address.lower()


def _check_unique(
    hosts: Iterable[Host], entries: Sequence[Any], key: str, value_of: Callable[[Host], str]
) -> None:
    seen: dict[str, Host] = {}
    for host, entry in zip(hosts, entries, strict=True):
        first = seen.setdefault(value_of(host), host)
        if first is not host:
            other = f"host {first.name} has it" if key != "name" else "another host has it"
            _refuse(entry, key, f"{key} of host {host.name} is {getattr(host, key)!r}, but {other} already")


def _check_labels(host: Host, entry: Any) -> None:
    labels = entry.get("labels") if isinstance(entry, dict) else None
    for name, value in host.labels.items():
        prefix, slash, rest = name.rpartition("/")
        rule = "letters, digits, '-', '_' and '.', at most 63, beginning and ending with a letter or digit"
        if not LABEL.fullmatch(rest) or (slash and not LABEL_PREFIX.fullmatch(prefix)):
            _refuse(labels, name, f"label {name!r} of host {host.name} is no name of a label; use {rule}")
        if prefix in RESERVED_PREFIXES:
            _refuse(
                labels, name, f"label {name!r} of host {host.name} is for {prefix} to set; choose another"
            )
        if value and not LABEL.fullmatch(value):
            _refuse(labels, name, f"label {name!r} of host {host.name} cannot be {value!r}; use {rule}")


def _check_roles(fleet: FleetFile, values: Any, lines: dict[str, Any]) -> None:
    if not any(host.hub for host in fleet.hosts):
        _refuse(values, "hosts", "the fleet has no hub; give one host `role: hub`")
    heads = [host for host in fleet.hosts if host.head]
    if len(heads) > 1:
        _refuse(
            lines[heads[1].name],
            "head",
            f"head of host {heads[1].name} is true, but {heads[0].name} is the head; a fleet has one",
        )
    for host in fleet.hosts:
        _check_edge(host, lines[host.name])
    for key in ("routers", "gateways"):
        if not sum(getattr(host, key) for host in fleet.hosts):
            _refuse(values, "", f"the fleet has no {key}; give a hub `{key}: 1`")
    if not fleet.nodes:
        _refuse(values, "", "no host of the fleet has memory for experts; give some memory_bytes above 0")


def _check_redis(fleet: FleetFile, values: Any) -> None:
    redis, written = fleet.redis, values.get("redis")
    host, _, port = redis.address.rpartition(":")
    if redis.address and not (host and port.isdecimal() and 1 <= int(port) <= MOST_PORT):
        _refuse(written, "address", f"address of redis is {redis.address!r}; it must be HOST:PORT")
    if redis.username and not redis.password_file:
        _refuse(written, "username", "username of redis needs a password_file beside it")
    if redis.password_file and not redis.password_file.startswith("/"):
        _refuse(written, "password_file", "password_file of redis must be an absolute path, on the head")


def _check_edge(host: Host, entry: Any) -> None:
    if host.hub:
        return
    if not host.memory_bytes:
        _refuse(
            entry,
            "memory_bytes",
            f"memory_bytes of host {host.name} is 0; an edge holds experts, so give it some, as 2GiB",
        )
    for key in ("head", "routers", "gateways"):
        if getattr(host, key):
            _refuse(
                entry,
                key,
                f"{key} of host {host.name} is {getattr(host, key)}, but it is an edge; make it a hub",
            )


def _check_ports(fleet: FleetFile, host: Host, values: Any, entry: Any) -> None:
    def refuse(use: PortUse, text: str) -> NoReturn:
        group, _, key = use.key.partition(".")
        written = (entry.get(group), values.get(group))
        place = next((inner for inner in written if isinstance(inner, dict) and key in inner), None)
        _refuse(entry if place is None else place, "" if place is None else key, text)

    uses = fleet.ports_of(host)
    for use in uses:
        if use.first < 1 or use.last > MOST_PORT:
            refuse(use, f"{use.key} takes {_range(use)} on host {host.name}; ports are 1 to {MOST_PORT}")
    for one, other in itertools.combinations(uses, 2):
        if one.first <= other.last and other.first <= one.last:
            text = f"{other.key} ({_range(other)}) and {one.key} ({_range(one)}) clash on host {host.name}"
            refuse(other, f"{text}; choose another port for one of them")


def _range(use: PortUse) -> str:
    return f"port {use.first}" if use.count == 1 else f"ports {use.first} to {use.last}"
