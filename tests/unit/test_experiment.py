"""Experiments from a spec: keys are checked, runs resume, reports hold what the runs found."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import yaml

from cluster.cli import app
from cluster.cli.experiment import READY, SPECS
from cluster.errors import ConfigError, InvalidRequest
from cluster.experiments import gates, plots
from cluster.experiments.generators import Workload, whole
from cluster.experiments.report import write_report
from cluster.experiments.runs import carry_out, fleet_of, sweep, work_of
from cluster.experiments.sim.inputs import Host
from cluster.experiments.spec import read_spec
from cluster.experiments.statistics import bootstrap, pareto
from cluster.experiments.traces import TraceWriter

PROVENANCE = {"git": "abc", "machine": {"cpu": "a test's"}}
FLOW = "cluster.balance.choice:flow"


def values():
    return {
        "name": "small",
        "seeds": [0, 1],
        "warmup": 2,
        "model": {"hidden": 64, "width": 32},
        "policies": [
            {"name": "dealt", "placement": "support.policies:dealt", "choice": FLOW},
            {
                "name": "two, capped",
                "placement": "support.policies:by_load",
                "choice": "cluster.balance.choice:even_split",
                "control": {"every": 4, "horizon": 0},
                "gate": {"function": "cluster.experiments.gates:capacity", "factor": 1.0},
            },
        ],
        "traces": [{"name": "t", "generate": {"layers": 2, "experts": 8, "top_k": 2, "steps": 12}}],
        "fleets": [{"name": "f", "devices": [{"profile": "n100", "count": 3}], "spare": 0.5}],
    }


def spec_of(tmp_path, **changes):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(values() | changes))
    return path


def test_a_sweep_resumes_and_reports(tmp_path, capsys):
    path, out = spec_of(tmp_path), tmp_path / "out"
    assert app.run(["experiment", "run", str(path), "--out", str(out), "--jobs", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 4
    kept = {run: run.stat().st_mtime_ns for run in (out / "runs").iterdir()}
    first = next(iter(kept))
    first.unlink()
    assert app.run(["experiment", "run", str(path), "--out", str(out), "--jobs", "1", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["done"], answer["skipped"], answer["failed"]) == (1, 3, {})
    assert all(run.stat().st_mtime_ns == when for run, when in kept.items() if run != first)
    assert app.run(["experiment", "report", str(out)]) == 0
    assert "report.html" in capsys.readouterr().out
    results = pl.read_parquet(out / "results.parquet")
    assert set(results["policy"]) == {"dealt", "two, capped"}
    assert results["seed"].to_list() == [0, 0, 1, 1]
    assert json.loads(results["config"][0])["policy"]["name"] == "dealt"
    assert "cpu" in json.loads(results["machine"][0])
    capped = results.filter(policy="two, capped")
    assert (capped["overflow"] > 0).all()
    assert (results.filter(policy="dealt")["overflow"] == 0).all()
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "http" not in page
    assert "two, capped" in page


def test_runs_side_by_side_are_the_runs_one_by_one(tmp_path):
    spec = read_spec(spec_of(tmp_path))
    for jobs in (1, 2):
        swept = sweep(spec, tmp_path / str(jobs), PROVENANCE, jobs)
        assert (swept.done, swept.failed) == (4, {})
    one, two = (pl.read_parquet(tmp_path / str(jobs) / "results.parquet") for jobs in (1, 2))
    assert one.equals(two)


def test_another_setting_is_another_run(tmp_path):
    for warmup in (2, 3):
        swept = sweep(read_spec(spec_of(tmp_path, warmup=warmup)), tmp_path / "out", PROVENANCE)
        assert (swept.done, swept.skipped) == (4, 0)


def test_a_recorded_trace_is_found_beside_the_spec(tmp_path):
    trace = whole(Workload(layers=2, experts=8, top_k=2, steps=12), 5)
    with TraceWriter(tmp_path / "t.parquet", trace.header) as writer:
        writer.write(trace)
    spec = read_spec(spec_of(tmp_path, traces=[{"name": "t", "file": "t.parquet"}]))
    assert sweep(spec, tmp_path / "out", PROVENANCE).done == 4
    with pytest.raises(ConfigError, match="does not exist"):
        sweep(read_spec(spec_of(tmp_path, traces=[{"name": "t", "file": "no"}])), tmp_path / "o", PROVENANCE)


def test_a_run_that_fails_says_so_and_the_others_go_on(tmp_path, capsys):
    policies = [
        *values()["policies"],
        {"name": "bad", "placement": "support.policies:refusing", "choice": FLOW},
    ]
    path, out = spec_of(tmp_path, policies=policies), tmp_path / "out"
    assert app.run(["experiment", "run", str(path), "--out", str(out), "--jobs", "1"]) == 1
    assert "2 runs failed; bad · t · f · seed 0: this policy never" in capsys.readouterr().err
    assert len(pl.read_parquet(out / "results.parquet")) == 4
    assert (
        app.run(["experiment", "run", str(spec_of(tmp_path, policies=policies[2:])), "--out", str(out)]) == 1
    )
    assert "every run failed" in capsys.readouterr().err


POLICY = values()["policies"][0]
FLEET = {"name": "f", "devices": [{"profile": "n100"}]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"nix": 1}, "no key 'nix'"),
        ({"policies": []}, "at least one"),
        ({"policies": [POLICY, POLICY]}, "'dealt' twice"),
        ({"policies": [POLICY | {"choice": "nowhere:f"}]}, "No module named"),
        ({"policies": [POLICY | {"choice": "cluster.balance.choice:best"}]}, "no function best"),
        ({"policies": [POLICY | {"choice": "flow"}]}, "is not"),
        ({"policies": [POLICY | {"choice": "support.policies:NOT_A_FUNCTION"}]}, "no function"),
        ({"policies": [POLICY | {"control": {"every": "often"}}]}, "every of control"),
        ({"policies": [POLICY | {"control": {"half_life": 0}}]}, "half_life"),
        ({"traces": [{"name": "t"}]}, "either generate or file"),
        ({"traces": [{"name": "t", "generate": {"gini": 2}}]}, "gini"),
        ({"traces": [{"name": "t", "generate": {"experts": 4.5}}]}, "whole number"),
        ({"fleets": [{"name": "f"}]}, "no devices"),
        ({"fleets": [{"name": "f", "devices": [{"profile": "abacus"}]}]}, "no device profile 'abacus'"),
        ({"fleets": [{"name": "f", "devices": [{"profile": "n100", "speed": 0}]}]}, "speed"),
        ({"fleets": [{"name": "f", "devices": [{"profile": "n100"}], "memory": "much"}]}, "memory"),
        ({"fleets": [{"name": "f", "devices": [{"profile": "n100"}], "faults": [{"at": 1}]}]}, "device"),
        ({"fleets": [{"name": "f", "devices": 3}]}, "must be a list"),
        ({"fleets": [{"name": "f", "devices": [{"profile": "n100", "host": "box"}]}]}, "no host 'box'"),
        ({"fleets": [FLEET | {"hosts": {"box": {"cores": 0}}}]}, "cores"),
        ({"fleets": [FLEET | {"hosts": {"box": {"core": 1}}}]}, "no key 'core'"),
        ({"fleets": [FLEET | {"hosts": {"box": {}}}]}, "needs a cores"),
        ({"fleets": [FLEET | {"router": {"host": "box"}}]}, "no host 'box'"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "twice"),
        ({"warmup": -1}, "warmup"),
        ({"model": {"hidden": 0}}, "hidden"),
        ({"name": ""}, "needs a name"),
    ],
)
def test_a_bad_spec_is_one_line_that_names_the_place(tmp_path, capsys, changes, words):
    assert (
        app.run(["experiment", "run", str(spec_of(tmp_path, **changes)), "--out", str(tmp_path / "o")]) == 1
    )
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_what_is_no_yaml_says_where(tmp_path):
    path = tmp_path / "spec.yaml"
    for text, words in (("a: [", "line 1"), ("- 1", "must be a mapping"), ("\0", "not YAML")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_spec(path)


def test_bad_usage_is_2(tmp_path):
    assert app.run(["experiment", "run", str(tmp_path / "none.yaml")]) == 2
    assert app.run(["experiment", "nix"]) == 2


def test_a_folder_without_results_has_no_report(tmp_path):
    with pytest.raises(InvalidRequest, match="has no results"):
        write_report(tmp_path)


@pytest.mark.parametrize("name", READY)
def test_the_ready_specs_can_be_read(name):
    spec = read_spec(SPECS / f"{name}.yaml")
    assert spec.name == name
    assert len(spec.runs()) <= 36


def test_a_warm_up_longer_than_the_trace_is_refused(tmp_path):
    run = read_spec(spec_of(tmp_path, warmup=12)).runs()[0]
    with pytest.raises(ConfigError, match="leaves nothing"):
        carry_out(run, tmp_path, PROVENANCE)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    """8e9 has no point, so that YAML 1.1 reads a word."""
    fleets = [{"name": "f", "devices": [{"profile": "n100", "ops": "8e9", "speed": 2}]}]
    assert read_spec(spec_of(tmp_path, fleets=fleets)).runs()[0].fleet.devices[0].ops == 16e9


def test_devices_and_routers_name_the_host_that_they_share(tmp_path):
    devices = [{"profile": "n100", "count": 2, "host": "box"}, {"profile": "n100"}]
    fleets = [
        {
            "name": "f",
            "devices": [*devices, {"profile": "n100", "host": "other"}],
            "hosts": {"box": {"cores": 2}, "other": {"cores": 4}},
            "router": {"host": "box", "send_s": 1e-5},
        }
    ]
    run = read_spec(spec_of(tmp_path, fleets=fleets)).runs()[0]
    assert run.fleet.hosts == (Host(2, (0, 1), routers=True), Host(4, (3,)))
    assert run.fleet.router.send_s == 1e-5
    carry_out(run, tmp_path, PROVENANCE)
    (path,) = tmp_path.glob("*.parquet")
    assert (pl.read_parquet(path)["step_s"] > 0).all()


@pytest.mark.parametrize("memory", ["equal", "speed"])
@pytest.mark.parametrize("spare", [0.0, 0.3])
def test_memories_hold_the_model_and_its_spares_to_the_byte(tmp_path, memory, spare):
    near = {"profile": "n100", "bandwidth": 1e13}
    devices = [near | {"speed": 3}, near | {"count": 2}]
    fleets = [{"name": "f", "devices": devices, "memory": memory, "spare": spare}]
    run = read_spec(spec_of(tmp_path, fleets=fleets)).runs()[0]
    trace = whole(run.trace.generate, 0)
    work = work_of(trace, trace.ids, np.ones(trace.ids.shape, bool))
    slots = fleet_of(run.fleet, run, work).memory / run.model.expert_bytes
    assert slots.sum() == round(16 * (1 + spare))
    assert (slots == slots.astype(int)).all()
    assert (slots[0] - slots[1] > 1) == (memory == "speed")


def test_capacity_keeps_the_first_tokens_of_an_expert():
    trace = whole(Workload(layers=2, experts=8, top_k=2, steps=3, tokens=20, zipf=1.5), 1)
    gated = gates.capacity(trace, np.random.default_rng(0), factor=1.0)
    for tokens in trace.step_slices():
        for layer in range(2):
            for expert in range(8):
                kept = gated.kept[tokens, layer][trace.ids[tokens, layer] == expert]
                assert kept.tolist() == [True] * min(5, len(kept)) + [False] * max(0, len(kept) - 5)
    assert not gated.kept.all()


def test_noise_evens_the_load_out_and_none_changes_nothing():
    trace = whole(Workload(layers=2, experts=16, top_k=2, steps=10, zipf=1.2), 1)
    quiet = gates.noisy_top_k(trace, np.random.default_rng(0), sigma=0.0)
    np.testing.assert_array_equal(np.sort(quiet.ids, axis=2), np.sort(trace.ids, axis=2))
    loud = gates.noisy_top_k(trace, np.random.default_rng(0), sigma=3.0)
    assert (np.diff(np.sort(loud.ids, axis=2), axis=2) > 0).all()
    assert np.bincount(loud.ids.ravel()).max() < 0.7 * np.bincount(trace.ids.ravel()).max()
    for wrong in ({"sigma": -1.0}, {"margin": -1.0}):
        with pytest.raises(ConfigError):
            gates.noisy_top_k(trace, np.random.default_rng(0), **wrong)
    with pytest.raises(ConfigError):
        gates.capacity(trace, np.random.default_rng(0), factor=0)


def test_the_bootstrap_covers_and_repeats():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        found = bootstrap(rng.normal(5, 1, 20))
        covered += found.low <= 5 <= found.high
    assert 85 <= covered <= 100
    samples = rng.normal(5, 1, 9)
    assert bootstrap(samples) == bootstrap(samples[::-1])
    alone = bootstrap(np.array([3.0]))
    assert (alone.low, alone.high, alone.samples) == (3.0, 3.0, 1)
    assert bootstrap(np.array([np.nan])).samples == 0


def test_the_front_is_what_nobody_beats():
    cost, value = np.array([1.0, 2, 2, 3, 1]), np.array([1.0, 3, 2, 3, 1])
    assert pareto(cost, value).tolist() == [True, True, False, False, True]


def test_colours_do_not_depend_on_what_is_shown():
    assert plots.colours(["a", "b"])["a"] == plots.colours(["a"])["a"]
