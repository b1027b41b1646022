"""Three hosts, a link cut in one direction: what continuous integration sees of the fleet's test-bed."""

from fleet.links import Link
from fleet.served import served

STREAMS, TOKENS = 8, 24


def test_a_one_way_cut_fails_no_request_and_changes_no_bit(three, undisturbed):
    with served(three, ["b", "c"], router="a", copies=2) as cluster:
        with cluster.streams(STREAMS, TOKENS) as found:
            cluster.wait_steps(10)
            three.link("c", "a", Link(cut=True))
            cluster.wait_steps(2 * TOKENS)
            three.link("c", "a", Link())
        undisturbed.check(found, STREAMS, TOKENS)
