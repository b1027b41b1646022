"""Hosts are made where that is permitted, and every module leaves the machine's namespaces as they were."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.bed import Bed, Wanted, bed
from fleet.needs import missing
from fleet.undisturbed import Undisturbed
from support.leaks import SESSION_VARIABLE


@pytest.fixture(scope="module")
def hosts_can_be_made() -> Iterator[None]:
    if reason := missing():
        pytest.skip(reason)
    before = namespaces()
    yield
    left = namespaces() - before
    assert not left, f"namespaces left behind: {', '.join(sorted(left))}"


@pytest.fixture
def three(hosts_can_be_made: None) -> Iterator[Bed]:
    """Hosts a, b and c."""
    with bed([Wanted(name) for name in "abc"]) as made:
        yield made


def namespaces() -> set[str]:
    """Network namespaces other than our own in which a process of this test session runs."""
    session = f"{SESSION_VARIABLE}={os.environ[SESSION_VARIABLE]}".encode()
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if session in (process / "environ").read_bytes().split(b"\0"):
                found.add(os.readlink(process / "ns" / "net"))
        except OSError:  # it has ended
            continue
    return found - {os.readlink("/proc/self/ns/net")}


@pytest.fixture(scope="session")
def undisturbed() -> Undisturbed:
    return Undisturbed()
