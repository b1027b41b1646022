"""`moemesh up --fleet` over real sshd, on six hosts with addresses of their own and different CPUs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fleet.links import Link
from fleet.sshfleet import MIXED, PROMPT, TOKENS, Fleet, fleet_over_ssh

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def fleet(hosts_can_be_made: None) -> Iterator[Fleet]:
    with fleet_over_ssh(MIXED) as made:
        yield made


def test_from_nothing_to_the_same_tokens_and_to_nothing_again(fleet: Fleet) -> None:
    summary = fleet.moemesh("up", "--fleet", str(fleet.file))
    assert "error" not in summary, summary
    words = ("generate", PROMPT, "--max-tokens", TOKENS)
    served = fleet.moemesh(*words, "--address", summary["grpc"])
    print(f"six hosts by ssh: up after {summary['seconds']:.1f} s")
    assert served["token_ids"] == fleet.moemesh(*words, "--local")["token_ids"]
    assert fleet.moemesh("down", "--fleet", str(fleet.file))["hosts"] == len(MIXED)
    assert not fleet.left()


def test_a_wrong_key_is_named_and_nothing_is_left(fleet: Fleet) -> None:
    entry = fleet.values["hosts"][2]
    entry["ssh"] = {"key": str(fleet.bed.folder / "other")}
    fleet.write()
    said = fleet.moemesh("up", "--fleet", str(fleet.file))["error"]["message"]
    del entry["ssh"]
    fleet.write()
    assert "host c " in said
    assert "refuses the key" in said
    assert not fleet.left()


def test_a_host_that_cannot_be_reached_is_named_and_nothing_is_left(fleet: Fleet) -> None:
    fleet.bed.part("d")
    said = fleet.moemesh("up", "--fleet", str(fleet.file))["error"]["message"]
    fleet.bed.connect("d", Link())
    assert "host d " in said
    assert "does not answer" in said
    assert not fleet.left()
