"""`ray up` over real sshd, on six hosts with addresses of their own and different CPUs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.programs import RSYNC, folder_with
from fleet.sshfleet import MIXED, PROMPT, TOKENS, Fleet, fleet_over_ssh
from support.clusters import wait_until
from support.debian import CannotRun

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(900)]

RAY = Path(sys.executable).with_name("ray")
END_S = 30.0
WORDS = ("generate", PROMPT, "--max-tokens", TOKENS)


@pytest.fixture(scope="module")
def fleet(hosts_can_be_made: None) -> Iterator[Fleet]:
    try:
        rsync = folder_with("rsync", RSYNC)
    except CannotRun as reason:
        pytest.skip(str(reason))
    with fleet_over_ssh(MIXED, programs=[rsync]) as made:
        yield made


def test_from_nothing_to_the_same_tokens_and_to_nothing_again(fleet: Fleet) -> None:
    begin = time.monotonic()
    out = fleet.bed.folder / "made"
    fleet.moemesh("fleet", "render", str(fleet.file), "--out", str(out))
    said = fleet.run(str(RAY), "up", "--yes", "--no-config-cache", str(out / "ray-cluster.yaml"))
    up = time.monotonic()
    address = f"{fleet.operator.address}:8471"
    assert "token_ids" in (served := fleet.moemesh(*WORDS, "--address", address)), said
    end = time.monotonic()
    print(f"{len(MIXED)} hosts by ray up: up after {up - begin:.1f} s, tokens after {end - begin:.1f} s")
    assert served["token_ids"] == fleet.moemesh(*WORDS, "--local")["token_ids"]
    assert {node["id"] for node in fleet.moemesh("status", "--fleet", str(fleet.file))["nodes"]} == set(MIXED)
    down = fleet.moemesh("down", "--fleet", str(fleet.file))
    assert down.get("hosts") == len(MIXED), down
    # Connections of Ray's launcher to the hosts stay for ten seconds.
    wait_until(lambda: not fleet.left(), "no process is left", END_S)
