"""A specification on a real cluster: the same results file as from the simulator, with measured times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cluster.cli.bench_validate import FITTED_ON
from cluster.errors import ConfigError
from cluster.experiments.live.cluster import LiveNode
from cluster.experiments.live.pin import cores
from cluster.experiments.live.validate import Case, validate, workload_for
from cluster.experiments.runs import carry_out, gather, run_id, sweep
from cluster.experiments.sim.inputs import Fault, Host
from cluster.experiments.sim.profiles import profile
from cluster.experiments.spec import Spec, read_spec
from cluster.library.bundled import open_model

SPEC = """
name: small
live: true
model: {hidden: 256, width: 128}
policies:
  - name: flow
    placement: cluster.balance.heuristic:place
    choice: cluster.balance.choice:flow
traces:
  - {name: zipf, generate: {layers: 6, experts: 32, top_k: 4, steps: 5, tokens: 8, zipf: 0.6}}
fleets:
  - name: two
    devices: [{profile: n100, count: 1, message_s: 0.002}, {profile: n100, message_s: 0.004}]
    memory: equal
"""


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    (tmp_path / "spec.yaml").write_text(SPEC)
    return read_spec(tmp_path / "spec.yaml")


def test_a_live_run_measures_steps(spec: Spec, tmp_path: Path) -> None:
    swept = sweep(spec, tmp_path / "out", {"git": "", "machine": {}})
    assert (swept.done, swept.failed) == (1, {})
    (run,) = spec.runs()
    steps = pl.read_parquet(tmp_path / "out" / "runs" / f"{run_id(run)}.parquet")
    # Both nodes have rows of every layer, and the slower one needs 4 ms for each message.
    assert (steps["step_s"].to_numpy() >= 6 * 0.004).all()
    row = gather(spec, tmp_path / "out").row(0, named=True)
    assert row["tokens_per_s"] > 0
    assert np.isnan(row["balancedness"])


def test_a_simulated_run_of_the_same_cell_is_another_run(spec: Spec) -> None:
    (run,) = spec.runs()
    assert run.live
    assert run_id(run) != run_id(replace(run, live=False))


def test_a_fitted_simulator_predicts_what_was_run_live() -> None:
    """Times are the machine's; that every step is there twice, made of costs that were measured, is not."""
    library = open_model()
    fitted_on = workload_for(library, replace(FITTED_ON, steps=12, tokens=8))
    cases = {"more": Case(replace(fitted_on, steps=3, tokens=24), (0, 1))}
    there = cores()
    nodes = [LiveNode(core=there[-1]), LiveNode(core=there[0])]
    found = validate(library, nodes, profile("n100"), fitted_on, cases, warm_s=0.0)["more"]
    measured, predicted, fitted = found.measured, found.predicted, found.fitted
    assert cores() == there
    assert measured.shape == predicted.shape == (3,)
    assert found.error == pytest.approx(abs(np.median(predicted) / np.median(measured) - 1))
    assert fitted.seats == (there[-1], there[0], there[0])
    assert min(fitted.costs.send_s, fitted.costs.take_s, fitted.costs.layer_s) > 0
    least = max(device.message_s for device in fitted.devices)
    assert (predicted > len(library.spec.sparse_layers) * least).all()


def test_nodes_without_pace_or_core_are_not_compared() -> None:
    with pytest.raises(ConfigError, match="which one each has"):
        validate(open_model(), [LiveNode()], profile("n100"), FITTED_ON, {})


def test_what_only_the_simulator_has_is_refused(spec: Spec, tmp_path: Path) -> None:
    (run,) = spec.runs()
    fleet, policy, trace = run.fleet, run.policy, run.trace
    assert trace.generate is not None
    for changed, words in (
        (replace(run, fleet=replace(fleet, faults=(Fault(1.0, 0),))), "faults exist in the simulator alone"),
        (replace(run, fleet=replace(fleet, resident=0.5)), "caches exist"),
        (replace(run, fleet=replace(fleet, routers=2)), "several routers exist"),
        (replace(run, fleet=replace(fleet, hosts=(Host(2, (0, 1)),))), "hosts exist"),
        (replace(run, policy=replace(policy, control=replace(policy.control, every=3))), "placements every"),
        (replace(run, trace=replace(trace, generate=replace(trace.generate, layers=5))), "the trace has"),
    ):
        with pytest.raises(ConfigError, match=words):
            carry_out(changed, tmp_path, {})
    (tmp_path / "bad.yaml").write_text(SPEC.replace("live: true", "live: 3"))
    with pytest.raises(ConfigError, match="live is 3"):
        read_spec(tmp_path / "bad.yaml")
