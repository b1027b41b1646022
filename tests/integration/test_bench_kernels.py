"""`moemesh bench kernels` measures what it says, and draws it; no test here looks at a speed."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import app
from cluster.cli.kernelbench import roofline
from cluster.cli.kernelbench.cases import experts_case
from cluster.cli.kernelbench.run import PRESETS, Kernels, measure_kernels
from cluster.cli.kernelbench.shapes import KINDS, Shape, random_blobs
from cluster.compute.threads import Workers
from cluster.config import MiB
from kernels import jit, limits, warm

TINY = replace(PRESETS["minimal"], runs=1, buffer=1 * MiB, contexts=(128,))


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    warm.compile_all()
    return measure_kernels(TINY, lambda text: None)


def test_every_figure_has_its_id(kernels: Kernels) -> None:
    ids = [r.id for r in kernels.results]
    assert len(set(ids)) == len(ids)
    wanted = [
        f"kernels.limits.dot_rate.{jit.ISA}.threads1",
        "kernels.limits.read_bandwidth.threads2.streams8",
        "kernels.attention_decode.bw_fraction.threads1.context128",
        "kernels.gate_logits.microseconds.rows32",
    ]
    for kind in KINDS:
        wanted += [
            f"kernels.{kind}_decode.bw_fraction.threads2",
            f"kernels.{kind}_prefill.{jit.ISA}.roof_fraction.rows64.threads1",
            f"kernels.{kind}_head_decode.bw_fraction.threads2",
            f"kernels.{kind}_projection_prefill.rate_fraction.threads1",
        ]
    assert set(wanted) <= set(ids)
    assert all(r.value > 0 and r.met is None for r in kernels.results), "a small buffer is not judged"


def test_the_full_preset_judges_what_the_issue_asks_for() -> None:
    assert PRESETS["full"].buffer >= 2 << 30
    assert {shape.name for shape in PRESETS["full"].shapes} == {"olmoe", "qwen3", "mixtral", "deepseek"}
    assert set(PRESETS["full"].prefill_rows) == {64, 256}


def test_points_lie_under_their_own_roof_by_construction(kernels: Kernels) -> None:
    assert set(kernels.rates) == set(kernels.bandwidths) == {1, 2}
    assert all(point.intensity > 1 and point.rate > 0 for point in kernels.points)


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_visits_every_expert_once(kind: str) -> None:
    shape = Shape("small", 128, 64, 3)
    blobs = random_blobs(np.random.default_rng(0), kind, shape, 1)
    assert blobs.count == shape.top_k
    workers = Workers(1)
    case = experts_case("x", "bw_fraction", workers, blobs, shape, rows=2, experts=blobs.count)
    case.run()
    assert case.bytes == len(blobs.data)
    assert case.operations == 2 * 2 * 3 * 4 * 128 * 64


@pytest.mark.parametrize("streams", limits.STREAMS)
def test_every_byte_is_read(streams: int) -> None:
    pieces = 16
    data = np.random.default_rng(0).integers(0, 255, pieces * limits.PIECE, dtype=np.uint8)
    sink = np.zeros(16, np.int32)
    limits.read_bytes(data, streams, sink, 0, pieces)
    total = data.view(np.int32).reshape(-1, 16).sum(axis=0, dtype=np.int32)
    assert np.array_equal(sink, total)


def test_a_plot_that_cannot_be_drawn_is_refused_before_measuring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, why in (("x.pdf", "ends in neither"), ("no/x.svg", "no folder")):
        assert app.run(["bench", "kernels", "--plot", str(tmp_path / name)]) == 1
        assert why in capsys.readouterr().err
    monkeypatch.setattr(roofline, "find_spec", lambda name: None)
    assert app.run(["bench", "kernels", "--plot", str(tmp_path / "x.svg"), "--json"]) == 1
    assert "moemesh[plot]" in json.loads(capsys.readouterr().out)["error"]["message"]


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="needs the plot extra")
@pytest.mark.parametrize("name", ["roof.svg", "roof.png"])
def test_the_plot_is_written(kernels: Kernels, tmp_path: Path, name: str) -> None:
    roofline.draw(kernels, tmp_path / name)
    assert (tmp_path / name).stat().st_size > 10_000
