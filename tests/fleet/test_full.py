"""The fleet's faults in full: `make test-fleet`. Every test compares all tokens with those of one process."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fleet import faults
from fleet.bed import Bed, Wanted, bed
from fleet.links import Link
from fleet.served import Served, served
from support.debian import CannotRun

pytestmark = [pytest.mark.fleet, pytest.mark.usefixtures("hosts_can_be_made")]

STREAMS, TOKENS = 16, 48
NODES = ("a", "b", "c")
MIXED = ("", "avx2", "portable")


@contextmanager
def cluster_of(
    wanted: list[Wanted] | None = None, copies: int = 2, **more: object
) -> Iterator[tuple[Bed, Served]]:
    """Three hosts with a node each, the controller and the router on the first."""
    with (
        bed(wanted or [Wanted(name) for name in NODES]) as made,
        served(made, NODES, router="a", copies=copies, **more) as cluster,  # type: ignore[arg-type]
    ):
        yield made, cluster


def test_mixed_instruction_sets_give_the_same_bits(undisturbed):
    wanted = [Wanted(name, isa) for name, isa in zip(NODES, MIXED, strict=True)]
    with cluster_of(wanted, copies=1) as (_, cluster), cluster.streams(STREAMS, TOKENS) as found:
        cluster.wait_steps(2 * TOKENS)
    undisturbed.check(found, STREAMS, TOKENS)


LINKS = {
    "lossy": Link(loss=0.01),
    "far": Link(delay_s=0.01, jitter_s=0.005),
    "narrow": Link(bytes_per_s=2e6),
}


@pytest.mark.parametrize("name", LINKS)
def test_bad_links_change_no_bit(name, undisturbed):
    with cluster_of() as (made, cluster), cluster.streams(STREAMS, TOKENS) as found:
        made.link_all(LINKS[name])
        cluster.wait_steps(2 * TOKENS)
    undisturbed.check(found, STREAMS, TOKENS)


def test_a_host_that_is_cut_off_comes_back(undisturbed):
    with cluster_of() as (made, cluster), cluster.streams(STREAMS, TOKENS) as found:
        for _ in range(2):
            cluster.wait_steps(20)
            made.part("c")
            cluster.wait_steps(2 * TOKENS)
            made.connect("c", Link())
        cluster.wait_steps(TOKENS)
    undisturbed.check(found, STREAMS, TOKENS)


def test_a_host_that_freezes_wakes_up_again(undisturbed):
    with cluster_of() as (made, cluster), cluster.streams(STREAMS, TOKENS) as found:
        cluster.wait_steps(20)
        with faults.frozen(made.hosts["b"]):
            cluster.wait_steps(2 * TOKENS)
        cluster.wait_steps(TOKENS)
    undisturbed.check(found, STREAMS, TOKENS)


def test_a_host_without_power(undisturbed):
    with cluster_of() as (made, cluster), cluster.streams(STREAMS, TOKENS) as found:
        cluster.wait_steps(20)
        made.hosts["b"].kill()
        cluster.wait_steps(2 * TOKENS)
    undisturbed.check(found, STREAMS, TOKENS)


def test_a_killed_node_whose_experts_nobody_else_holds(undisturbed):
    with cluster_of(copies=1) as (_, cluster), cluster.streams(STREAMS, TOKENS) as found:
        cluster.wait_steps(20)
        cluster.processes["node-2"].send(signal.SIGKILL)
        cluster.wait_steps(2 * TOKENS)
    undisturbed.check(found, STREAMS, TOKENS)


def test_a_node_at_a_tenth_of_its_speed(undisturbed):
    with cluster_of() as (_, cluster), cluster.streams(STREAMS, TOKENS) as found:
        cluster.wait_steps(20)
        with faults.slowed(cluster.processes["node-1"], 0.1):
            cluster.wait_steps(2 * TOKENS)
    undisturbed.check(found, STREAMS, TOKENS)


def test_a_full_disk_of_logs_stops_no_stream(undisturbed):
    with bed([Wanted(name) for name in NODES]) as made:
        logs = made.folder / "logs"
        logs.mkdir()
        faults.small_disk(made.hosts["c"], logs, 1 << 20)
        with served(made, NODES, router="a", copies=2) as cluster:
            faults.fill(made.hosts["c"], logs)
            with cluster.streams(STREAMS, TOKENS) as found:
                cluster.wait_steps(20)
                made.part("c")  # there is something to log
                cluster.wait_steps(TOKENS)
                made.connect("c", Link())
                cluster.wait_steps(TOKENS)
    undisturbed.check(found, STREAMS, TOKENS)


def test_clocks_that_differ(undisturbed):
    try:
        wrong = faults.wall_clock(ahead_s=86_400)
    except CannotRun as reason:
        pytest.skip(str(reason))
    wanted = [Wanted("a"), Wanted("b", clock_s=100_000), Wanted("c", environment=wrong)]
    with cluster_of(wanted) as (made, cluster), cluster.streams(STREAMS, TOKENS) as found:
        here = int(subprocess.check_output(["date", "+%s"]))
        assert int(made.hosts["c"].run(["date", "+%s"])) - here > 80_000
        cluster.wait_steps(2 * TOKENS)
    undisturbed.check(found, STREAMS, TOKENS)
