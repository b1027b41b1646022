"""The tables of keys in docs/fleet.md are the fields of the dataclasses, with their defaults."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from cluster.experiments.sim.profiles import PROFILES
from cluster.fleet.file import RAY_PORTS, WORKER_PORTS, FleetFile, Host, Ports, Redis, Ssh
from cluster.fleet.gateways import PORTS_PER_GATEWAY
from cluster.values import NO_KEY

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "fleet.md").read_text()
TABLES = {"the fleet": FleetFile, "a host": Host, "ssh": Ssh, "ports": Ports, "redis": Redis}


def table(heading: str) -> dict[str, list[str]]:
    """Default and meaning by key."""
    part = PAGE.split(f"\n## Keys of {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {key.strip("`"): rest for key, *rest in rows}


@pytest.mark.parametrize(("heading", "cls"), TABLES.items(), ids=TABLES)
def test_every_key_is_explained(heading: str, cls: type) -> None:
    keys = {field.name for field in fields(cls) if field.metadata != NO_KEY}
    assert set(table(heading)) == keys


@pytest.mark.parametrize(("heading", "cls"), TABLES.items(), ids=TABLES)
def test_keys_without_a_default_must_be_given(heading: str, cls: type) -> None:
    needed = {
        field.name for field in fields(cls) if field.default is MISSING and field.default_factory is MISSING
    }
    assert needed == {key for key, (default, _) in table(heading).items() if default == "must be given"}


def test_defaults_that_are_written_are_the_classes() -> None:
    host, ports = Host.__dataclass_fields__, Ports()
    assert table("a host")["storage"][0] == f"`{host['storage'].default}`"
    assert table("a host")["venv"][0] == f"`{host['venv'].default}`"
    assert {key: row[0] for key, row in table("ports").items()} == {
        field.name: str(getattr(ports, field.name)) for field in fields(Ports)
    }
    assert table("ssh")["port"][0] == str(Ssh().port)


def test_rows_of_ports_and_classes_are_those_of_the_code() -> None:
    assert f"the first of {RAY_PORTS} in a row" in table("ports")["ray"][1]
    assert f"the first of {WORKER_PORTS}:" in table("ports")["workers"][1]
    assert PORTS_PER_GATEWAY == 2, "help: docs/fleet.md says two"
    assert all(f"`{name}`" in table("a host")["device"][1] for name in PROFILES)
