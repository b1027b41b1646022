"""What a link does to packets, without any network."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.links import QUEUE_BYTES, Line, Link
from fleet.switch import VNET, packets_in

LINKS = st.builds(
    Link,
    delay_s=st.floats(0, 0.2),
    jitter_s=st.floats(0, 0.1),
    loss=st.floats(0, 0.5),
    bytes_per_s=st.one_of(st.just(0.0), st.floats(1e3, 1e9)),
)
SENT = st.lists(st.tuples(st.floats(0, 0.01), st.integers(20, 65536), LINKS), max_size=40)


@given(SENT, st.integers(0, 2**32))
def test_packets_arrive_in_order_and_never_too_early(sent, seed):
    line, now, last = Line(Link(), Random(seed)), 0.0, 0.0
    for pause, size, link in sent:
        now, line.link = now + pause, link
        arrival = line.arrival(now, size)
        if arrival is not None:
            assert arrival >= max(last, now + link.delay_s)
            last = arrival


def test_a_cut_link_carries_nothing_until_it_is_mended():
    line = Line(Link(cut=True), Random(0))
    assert line.arrival(0.0, 100) is None
    line.link = Link(delay_s=0.02)
    assert line.arrival(1.0, 100) == pytest.approx(1.02)


def test_a_rate_spaces_packets_and_drops_what_its_queue_cannot_hold():
    line = Line(Link(bytes_per_s=1e6), Random(0))
    arrivals = [line.arrival(0.0, 1000) for _ in range(1000)]
    held = [each for each in arrivals if each is not None]
    assert held == pytest.approx([0.001 * (1 + number) for number in range(len(held))])
    assert QUEUE_BYTES <= 1000 * len(held) <= QUEUE_BYTES + 2000


def test_it_loses_the_part_it_should_and_more_often_of_several_in_one():
    line = Line(Link(loss=0.01), Random(1))
    lost = sum(line.arrival(0.0, 100) is None for _ in range(20_000))
    assert 150 <= lost <= 250
    several = sum(line.arrival(0.0, 100, packets=40) is None for _ in range(20_000))
    assert 6_300 <= several <= 6_900  # 1 - 0.99 ** 40 of them


def test_the_same_seed_loses_the_same_packets():
    link = Link(loss=0.3, jitter_s=0.01)
    first, second = (
        [line.arrival(0.0, 100) for _ in range(100)]
        for line in (Line(link, Random(7)), Line(link, Random(7)))
    )
    assert first == second


@pytest.mark.parametrize(("size", "packets"), [(0, 1), (1448, 3)])
def test_packets_that_the_kernel_gave_as_one_are_counted(size, packets):
    kind = 1 if size else 0
    data = VNET.pack(0, kind, 40, size, 0, 0) + bytes(40 + 1448 * 2 + 1)
    assert packets_in(data) == packets
