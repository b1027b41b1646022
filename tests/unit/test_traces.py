"""Traces: the file keeps every token, is plain Parquet, and what is not a trace says so."""

from __future__ import annotations

import contextlib
import json

import msgpack
import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cluster.cli import app
from cluster.errors import ConfigError, InvalidRequest, ProtocolError
from cluster.experiments import traces
from cluster.experiments.generators import (
    Workload,
    generate,
    gini,
    inclusion,
    whole,
    zipf_exponent,
)
from cluster.experiments.importer import import_arrays
from cluster.router.recorder import GateRecord, GateRecorder
from cluster.router.sequence import Batch, Piece, Sequence
from cluster.router.tracing import records_of
from cluster.types import EngineRequest, RequestId
from cluster.values import build, parse_pairs

SMALL = Workload(layers=3, experts=8, top_k=2, steps=6, tokens=5)


def written(path, trace):
    with traces.TraceWriter(path, trace.header) as writer:
        writer.write(trace)
    return path


def same(a, b):
    assert a.header == b.header
    for name in ("step", "time", "request", "position", "ids", "weights"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_a_trace_survives_its_file_whatever_the_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(traces, "PART_ROWS", 7)
    with traces.TraceWriter(tmp_path / "t.parquet", SMALL.header) as writer:
        for step in generate(SMALL, 3):
            writer.write(step)
    same(traces.read(tmp_path / "t.parquet"), whole(SMALL, 3))
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_polars_reads_it_without_us(tmp_path):
    trace = whole(SMALL, 1)
    rows = pl.read_parquet(written(tmp_path / "t.parquet", trace))
    counted = rows.explode("experts").group_by("layer", "experts").len().sort("layer", "experts")
    total = trace.counts(slice(0, len(trace)))
    assert {(row[0], row[1]): row[2] for row in counted.iter_rows()} == {
        (int(a), int(b)): total[a, b] for a, b in np.argwhere(total)
    }


def test_an_error_or_an_empty_trace_leaves_no_file(tmp_path):
    def write(*parts):
        with traces.TraceWriter(tmp_path / "t", SMALL.header) as writer:
            for part in parts:
                writer.write(part)

    with pytest.raises(TypeError):
        write(whole(SMALL, 1), None)
    with pytest.raises(InvalidRequest, match="empty"):
        write()
    assert not list(tmp_path.iterdir())


def test_a_file_is_never_overwritten(tmp_path):
    path = written(tmp_path / "t.parquet", whole(SMALL, 1))
    with pytest.raises(InvalidRequest, match="exists"):
        traces.TraceWriter(path, SMALL.header)


def test_what_is_not_a_trace_says_so(tmp_path):
    other = tmp_path / "other.parquet"
    pl.DataFrame({"a": [1]}).write_parquet(other)
    (tmp_path / "text").write_text("no")
    for name, words in (
        ("other.parquet", "not a trace"),
        ("text", "not a trace"),
        ("none", "does not exist"),
    ):
        with pytest.raises(InvalidRequest, match=words):
            traces.read(tmp_path / name)


def rewritten(path, rows, **changes):
    header = {"version": 1, "experts": 8, "top_k": 2, "layers": [0, 1, 2], "source": ""} | changes
    rows.write_parquet(path, metadata={traces.METADATA_KEY: json.dumps(header)})
    return path


def test_broken_files_are_refused(tmp_path):
    rows = traces.frame(whole(SMALL, 1))
    cases = [
        (rows.head(0), {}, "empty trace"),
        (rows.head(len(rows) - 1), {}, "not complete"),
        (rows, {"layers": [0, 1]}, "not complete"),
        (rows, {"experts": 4}, "names expert"),
        (rows, {"version": 9}, "another version"),
        (rows, {"top_k": 9}, "top-k ≤ experts"),
        (rows, {"unknown": 1}, "not a trace"),
    ]
    for number, (frame, changes, words) in enumerate(cases):
        with pytest.raises(InvalidRequest, match=words):
            traces.read(rewritten(tmp_path / f"{number}.parquet", frame, **changes))


def test_generated_traces_follow_from_their_seed():
    same(whole(SMALL, 5), whole(SMALL, 5))
    assert not np.array_equal(whole(SMALL, 5).ids, whole(SMALL, 6).ids)


def test_experts_of_a_token_differ_and_weights_sum_to_one_best_first():
    trace = whole(SMALL, 2)
    assert (np.diff(np.sort(trace.ids, axis=2), axis=2) > 0).all()
    np.testing.assert_allclose(trace.weights.sum(axis=2), 1, rtol=1e-5)
    assert (np.diff(trace.weights, axis=2) <= 0).all()


@pytest.mark.parametrize("wanted", [0.0, 0.1, 0.25, 0.38])
def test_the_gini_coefficient_is_what_was_asked_for(wanted):
    workload = Workload(layers=2, gini=wanted, steps=40, tokens=500)
    trace = whole(workload, 1)
    measured = np.mean([gini(layer) for layer in trace.counts(slice(0, len(trace))).astype(float)])
    assert measured == pytest.approx(wanted, abs=0.015)


def test_inclusion_probabilities_are_those_of_drawing_without_replacement():
    workload = Workload(layers=1, experts=16, top_k=4, zipf=0.8, steps=1, tokens=40_000)
    drawn = np.sort(whole(workload, 1).counts(slice(0, 40_000))[0] / 40_000)
    ranked = np.arange(1, 17.0) ** -zipf_exponent(workload)
    np.testing.assert_allclose(drawn, np.sort(inclusion(ranked, 4)), atol=0.02)


def test_a_switch_changes_the_load_and_the_first_domain_comes_back():
    workload = Workload(layers=1, tokens=400, steps=6, domains=2, switches=(2, 4), zipf=1.0)
    trace = whole(workload, 1)
    loads = np.array([trace.counts(tokens)[0] for tokens in trace.step_slices()]) / (400 * 8)
    distance = 0.5 * np.abs(loads[:, None] - loads[None]).sum(axis=2)
    alike = np.array([0, 0, 1, 1, 0, 0])
    assert distance[alike[:, None] != alike].min() > 2 * distance[alike[:, None] == alike].max()


def test_bursts_have_more_tokens():
    counts = [len(step) for step in generate(Workload(layers=1, burst_rate=0.1, steps=200), 1)]
    assert set(counts) == {64, 256}


def test_correlated_experts_fire_together_and_in_the_same_group_everywhere():
    def together(correlation):
        workload = Workload(layers=2, tokens=2000, steps=1, groups=4, correlation=correlation, gini=0)
        chosen = np.zeros((2000, 2 * 64))
        trace = whole(workload, 1)
        for layer in range(2):
            np.put_along_axis(chosen, trace.ids[:, layer].astype(int) + 64 * layer, 1, axis=1)
        off = np.corrcoef(chosen.T) - np.eye(128)
        return off.max()

    assert together(2.0) > 2 * together(0.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 9, "experts": 8}, "top_k"),
        ({"gini": 1.0}, "gini"),
        ({"switches": (5, 3)}, "switches"),
        ({"steps": 0}, "steps"),
        ({"burst_rate": 2.0}, "burst_rate"),
    ],
)
def test_an_impossible_workload_names_the_key(settings, words):
    with pytest.raises(ConfigError, match=words):
        Workload(**settings)


def test_key_value_words_become_a_workload():
    values = parse_pairs(Workload, ["experts=32", "gini=0.3", "switches=4,9", "zipf=null"], "it")
    workload = build(Workload, values, "it")
    assert (workload.experts, workload.gini, workload.switches, workload.zipf) == (32, 0.3, (4, 9), None)
    for words, said in ((["nix=1"], "no key 'nix'"), (["steps"], "KEY=VALUE"), (["steps=a"], "whole number")):
        with pytest.raises(ConfigError, match=said):
            build(Workload, parse_pairs(Workload, words, "it"), "it")


def joined(parts):
    from cluster.experiments.generators import concatenate

    return concatenate(list(parts))


def test_arrays_are_imported_in_either_order(tmp_path):
    trace = whole(SMALL, 4)
    np.save(tmp_path / "a.npy", trace.ids)
    np.savez(
        tmp_path / "b.npz", expert_ids=trace.ids.swapaxes(0, 1), topk_weights=trace.weights.swapaxes(0, 1)
    )
    _, parts, tokens = import_arrays(tmp_path / "a.npy", 5, experts=8)
    plain = joined(parts)
    assert tokens == len(plain) == 30
    np.testing.assert_array_equal(plain.ids, trace.ids)
    np.testing.assert_array_equal(plain.step, trace.step)
    header, parts, _ = import_arrays(tmp_path / "b.npz", 5, layers_first=True)
    assert header.experts == 8
    np.testing.assert_array_equal(joined(parts).weights, trace.weights)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"ids": np.zeros((2, 3), int)}, "expected whole numbers"),
        ({"ids": np.zeros((2, 3, 2))}, "expected whole numbers"),
        ({"ids": np.zeros((0, 3, 2), int)}, "empty trace"),
        ({"ids": -np.ones((2, 3, 2), int)}, "names experts -1"),
        ({"ids": np.full((2, 3, 2), 9)}, "names experts 9"),
        ({"ids": np.zeros((2, 3, 2), int), "weights": np.zeros((2, 3))}, "weights of"),
        ({"a": np.zeros(1), "b": np.zeros(1)}, "call the ids"),
        ({"ids": np.array([None])}, "plain arrays"),
    ],
)
def test_arrays_that_are_no_trace_are_refused(tmp_path, arrays, words):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InvalidRequest, match=words):
        import_arrays(tmp_path / "x.npz", 5, experts=8)


def batch_of(*rows):
    pieces = tuple(
        Piece(Sequence(EngineRequest(RequestId(f"r{i}"), (1,)), i, [1] * n), 0, n) for i, n in enumerate(rows)
    )
    total = sum(rows)
    return Batch(pieces, np.zeros(total, np.int32), np.arange(total), np.arange(total), np.arange(total))


def test_interleaved_micro_batches_become_one_record_each():
    recorder = GateRecorder(2, iter(range(100)).__next__)
    a, b = batch_of(2, 1), batch_of(4)
    ids, weights = np.array([[1, 2]], np.int32), np.ones((1, 2), np.float32)
    for layer in (1, 3):
        for batch, rows in ((a, 3), (b, 4)):
            recorder.gate(layer, batch, np.repeat(ids + layer, rows, 0), np.repeat(weights, rows, 0))
    first, second = recorder.drain()
    assert first.requests == (("r0", 2), ("r1", 1))
    assert (first.step, second.step, first.layers) == (0, 1, (1, 3))
    assert second.ids[1].tolist() == [[4, 5]] * 4
    assert not recorder.drain()
    again = GateRecord.from_wire(first.to_wire())
    np.testing.assert_array_equal(again.ids, first.ids)
    header = traces.Header(8, 2, (1, 3))
    trace = joined(traces.from_records(header, [again, second], 7))
    assert trace.request.tolist() == [7, 7, 8, 7, 7, 7, 7]


def test_failed_steps_and_a_slow_reader_cost_bounded_memory():
    recorder = GateRecorder(2, lambda: 0.0, most_bytes=1)
    ids, weights = np.zeros((1, 2), np.int32), np.zeros((1, 2), np.float32)
    for _ in range(20):
        recorder.gate(0, batch_of(1), ids, weights)
    assert len(recorder._open) <= 4
    batch = batch_of(1)
    for _ in range(2):
        for layer in range(2):
            recorder.gate(layer, batch, ids, weights)
    assert len(recorder.drain()) == 1
    assert recorder.dropped == 1


@pytest.mark.parametrize(
    "change", [{"shape": [1, 1]}, {"layers": []}, {"ids": b"1"}, {"requests": [["a", 9]]}]
)
def test_a_broken_record_is_a_protocol_error(change):
    record = GateRecord(
        0, 0.0, ((RequestId("a"), 1),), np.zeros(1, int), (0,), np.zeros((1, 1, 2)), np.zeros((1, 1, 2))
    )
    with pytest.raises(ProtocolError, match="broken trace"):
        GateRecord.from_wire(record.to_wire() | change)


WIRE = GateRecord(
    0, 0.0, ((RequestId("a"), 1),), np.zeros(1, int), (0,), np.zeros((1, 1, 2)), np.zeros((1, 1, 2))
).to_wire()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(
    st.binary(max_size=40)
    | st.builds(msgpack.packb, VALUES)
    | st.builds(
        lambda key, value: msgpack.packb([WIRE | {key: value}]), st.sampled_from(sorted(WIRE)), VALUES
    )
)
@example(msgpack.packb([WIRE | {"step": float("inf")}]))
@example(msgpack.packb([WIRE | {"shape": [2**63, 1, 1]}]))
@example(b"\x91" * 5000)
def test_what_a_router_answers_is_records_or_a_protocol_error(payload):
    with contextlib.suppress(ProtocolError):
        assert all(isinstance(record, GateRecord) for record in records_of(memoryview(payload)))


def test_the_commands(tmp_path, capsys):
    out = tmp_path / "t.parquet"
    assert app.run(["trace", "generate", str(out), "experts=16", "steps=4", "gini=0.3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 256
    assert app.run(["trace", "info", str(out), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["experts"], shown["steps"]) == (16, 4)
    np.save(tmp_path / "a.npy", traces.read(out).ids)
    assert app.run(["trace", "import", str(tmp_path / "a.npy"), str(tmp_path / "b.parquet")]) == 0
    assert app.run(["trace", "info", str(tmp_path / "b.parquet")]) == 0
    assert "distinct" in capsys.readouterr().out
    assert app.run(["trace", "info", str(tmp_path / "a.npy")]) == 1
    assert "is not a trace" in capsys.readouterr().err
    assert app.run(["trace", "generate", str(out), "nix=1"]) == 1
    assert app.run(["trace", "generate"]) == 2
