"""Routers and gateways on two hosts, neither of which is the head's; one of the two loses its power."""

from __future__ import annotations

import pytest

from fleet.bed import Bed
from fleet.served import served
from fleet.undisturbed import Undisturbed

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(400)]

STREAMS, TOKENS = 8, 64


def test_streams_go_on_at_the_gateway_of_the_other_host(three: Bed, undisturbed: Undisturbed) -> None:
    """Half of the clients began at the lost gateway. Nobody tells them: its host does not even reset their
    connections."""
    with served(three, "abc", head="a", fronts="bc", copies=2) as cluster:
        with cluster.streams(STREAMS, TOKENS, cluster.gateway_addresses()) as found:
            cluster.wait_steps(20, "router-b")
            cluster.wait_steps(20, "router-c")
            three.hosts["b"].kill()
            cluster.wait_streams(STREAMS, "gateway-c")
            cluster.wait_steps(2 * TOKENS, "router-c")
        undisturbed.check(found, STREAMS, TOKENS)
