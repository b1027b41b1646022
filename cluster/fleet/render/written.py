"""A fleet as the text of a fleet file: what `load` reads back as the same fleet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import Any

import yaml

from cluster.fleet.file import FleetFile, Host


def fleet_text(fleet: FleetFile) -> str:
    """Keys as in the dataclasses; of the whole fleet, those that say something else than their defaults."""
    values = _mapping(fleet)
    values["hosts"] = [_host(host, fleet) for host in fleet.hosts]
    return dump(values)


def dump(values: Mapping[str, Any]) -> str:
    """Block style, keys in the order given, lines and anchors as a person would write them."""
    text: str = yaml.dump(
        dict(values), Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=110
    )
    return text


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def lines(self, text: str) -> yaml.ScalarNode:
        style = "|" if "\n" in text else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.lines)


def _host(host: Host, fleet: FleetFile) -> dict[str, Any]:
    """routers and gateways are written in full: what a host has by default depends on its role."""
    given = _mapping(host)
    for key in ("ssh", "ports"):
        given.pop(key, None)
        own = getattr(host, key)
        if own != getattr(fleet, key):
            given[key] = _plain(own)
    return given | {"routers": host.routers, "gateways": host.gateways}


def _mapping(config: Any, base: Any = None) -> dict[str, Any]:
    """Fields whose values differ from `base`'s, or from their defaults."""
    found = {}
    for field in fields(config):
        value = getattr(config, field.name)
        default = _default(field) if base is None else getattr(base, field.name)
        if value != default:
            same = is_dataclass(value) and type(default) is type(value)
            found[field.name] = _mapping(value, default) if same else _plain(value)
    return found


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _plain(value: Any) -> Any:
    """As YAML knows it."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return dict(value) if isinstance(value, Mapping) else value
