"""`moemesh trace record`: what the file holds is what the gates chose, and recording changes no bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import app
from cluster.cli.local import score
from cluster.cli.quality import windows
from cluster.config import EngineConfig
from cluster.experiments import traces
from cluster.router.recorder import GateRecorder
from support.engines import engine_over, tiny_library

TEXT = "And the earth was without form, and void; and darkness was upon the face of the deep."


class Seen:
    """A probe that keeps what the gates gave it, by layer."""

    def __init__(self):
        self.ids, self.weights = {}, {}

    def gate(self, layer, batch, ids, weights):
        self.ids.setdefault(layer, []).append(ids.copy())
        self.weights.setdefault(layer, []).append(weights.copy())

    def logits(self, request_id, position, logits):
        pass


@pytest.mark.parametrize("model", ["qwen3-tied-gqa", "qwen3-dense-between"])
def test_the_file_holds_what_the_gates_chose(tmp_path, capsys, model):
    library = tiny_library(tmp_path / "models", model)
    text, out = tmp_path / "text.txt", tmp_path / "t.parquet"
    text.write_text(TEXT)
    words = ["trace", "record", str(out), "--text", str(text), "--model", str(library.path), "--chunk", "16"]
    assert app.run([*words, "--json"]) == 0
    ids = tuple(library.tokenizer().encode(TEXT))
    trace = traces.read(out)
    assert json.loads(capsys.readouterr().out)["tokens"] == len(trace) >= len(ids)
    assert int(np.bincount(trace.step).max()) == 16
    assert trace.header.layers == tuple(
        layer for layer in range(library.spec.layers) if not library.spec.dense_widths[layer]
    )
    seen = Seen()
    with engine_over(library, EngineConfig(chunk_tokens=16), probe=seen) as engine:
        for part in windows(ids, engine.context):
            score(engine, part)
    for column, layer in enumerate(trace.header.layers):
        np.testing.assert_array_equal(trace.ids[:, column], np.concatenate(seen.ids[layer]))
        np.testing.assert_array_equal(trace.weights[:, column], np.concatenate(seen.weights[layer]))


def test_recording_changes_no_bit(tmp_path):
    library = tiny_library(tmp_path, "qwen3-tied-gqa")
    ids = tuple(library.tokenizer().encode(TEXT))
    recorder = GateRecorder(library.spec.layers, lambda: 0.0)
    with engine_over(library, EngineConfig(micro_batches=2)) as plain:
        wanted = score(plain, ids)
    with engine_over(library, EngineConfig(micro_batches=2), probe=recorder) as engine:
        np.testing.assert_array_equal(score(engine, ids), wanted)
    assert sum(len(record.positions) for record in recorder.drain()) == len(ids)


def test_an_empty_text_is_refused(tmp_path, capsys):
    (tmp_path / "empty.txt").write_text("")
    words = ["trace", "record", str(tmp_path / "t.parquet"), "--text", str(tmp_path / "empty.txt")]
    assert app.run(words) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert [path.name for path in Path(tmp_path).iterdir()] == ["empty.txt"]
