"""`moemesh bench balance`: one object with every row of the table, judged, bounds and baselines beside."""

from __future__ import annotations

from cluster.cli.bench_balance import PARTS, BalancePreset, measure_balance

TIMES = {
    "balance.deepseek_v3.time_ratio",
    "balance.choice.experts256.devices64.rows512.us",
    "balance.simulator.least_loaded",
    "balance.simulator.flow",
    "balance.live.p99_gain_of_predicted",
}
"""Met or not as the machine is."""


def test_every_row_is_judged_and_what_is_no_time_is_met() -> None:
    said: list[str] = []
    preset = BalancePreset(1, 5, 1, 3, live=1, tokens=4, fits=0, steps=0, drift=800)
    results = {r.id: r for r in measure_balance(preset, said.append)}
    assert said == list(PARTS)
    judged = {id for id, r in results.items() if r.met is not None}
    assert judged == TIMES | {
        "balance.readme.layer0.balancedness",
        "balance.readme.layer1.balancedness",
        "balance.zipf.tokens32.balancedness",
        "balance.zipf.tokens256.balancedness",
        "balance.unequal.tokens256.balancedness",
        "balance.deepseek_v3.loads_no_worse_than_eplb",
        "balance.choice.experts256.devices64.rows512.rows_over_optimum",
        "balance.distinct.exact",
        "balance.live.tokens_identical",
        "balance.drift.steps",
        "balance.drift.bytes_over_eplb",
    }
    assert all(results[id].met for id in judged - TIMES)
    for name in ("readme.layer0.bound_of_replicas", "zipf.tokens32.eplb", "distinct.decode16.bound"):
        assert f"balance.{name}" in results
