"""The measuring code of the dispatch, with its nodes as processes; bytes and messages, never times."""

from __future__ import annotations

import pytest

from cluster.cli.bench_dispatch import BUNDLED, measure_exchange, measure_raw


@pytest.mark.parametrize("rows", [1, 32])
def test_the_exchange_over_echo_processes_stays_within_its_bytes(rows: int) -> None:
    measured = measure_exchange(rows, rounds=50)
    assert measured.times_us.shape == (50,)
    assert 0 < measured.percentile(50) <= measured.percentile(99)
    sent = measured.payload_bytes_out / (BUNDLED.hidden + 4)
    assert rows <= sent <= 3 * rows
    assert measured.header_bytes_out <= 64 * measured.messages + 12 * sent
    assert measured.payload_bytes_in == rows * BUNDLED.top_k * BUNDLED.hidden * 2


def test_plain_sockets_move_as_much() -> None:
    measured = measure_raw(4, rounds=50, nodes=2)
    assert measured.times_us.shape == (50,)
    assert measured.percentile(50) > 0
