"""Which routers a gateway uses, as controllers come and go."""

from __future__ import annotations

from cluster.fleet.control import View
from cluster.fleet.roles.gateway import Named, routers_of


def view(epoch: int, **routers: bool) -> View:
    """routers: whether each is ready."""
    named = {name: {"address": f"{name}:1", "ready": ready} for name, ready in routers.items()}
    return View(routers=named, epoch=epoch)


def named(epoch: int, *names: str) -> dict[str, Named]:
    return {name: Named(f"{name}:1", epoch) for name in names}


def test_routers_that_are_ready_are_used() -> None:
    assert routers_of(view(1, r0=True, r1=False), {}) == named(1, "r0")


def test_a_router_that_has_left_is_used_no_more() -> None:
    assert routers_of(view(1, r0=True), named(1, "r0", "r1")) == named(1, "r0")
    assert routers_of(view(1, r0=True, r1=False), named(1, "r0", "r1")) == named(1, "r0")


def test_a_controller_that_has_started_again_takes_no_router_away() -> None:
    before = named(1, "r0", "r1")
    assert routers_of(view(2), before) == before
    heard = routers_of(view(2, r0=True), before)
    assert heard == named(2, "r0") | named(1, "r1")
    assert routers_of(view(2, r0=True, r1=True), heard) == named(2, "r0", "r1")
    assert routers_of(view(2, r1=False), heard) == {}  # r0 has left the new one, r1 has told it that it waits


def test_a_router_that_is_late_to_report_keeps_its_streams_and_is_not_begun_with() -> None:
    late = View(routers={"r0": {"address": "r0:1", "ready": False, "late": True}}, epoch=1)
    assert routers_of(late, named(1, "r0")) == named(1, "r0")
    assert routers_of(late, {"r0": Named("r0:0", 1)}) == {}
    assert routers_of(late, {}) == {}


def test_a_router_that_has_moved_is_used_where_it_is() -> None:
    moved = View(routers={"r0": {"address": "r0:2", "ready": True}}, epoch=2)
    assert routers_of(moved, named(1, "r0")) == {"r0": Named("r0:2", 2)}
