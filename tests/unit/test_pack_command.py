"""The verbs `pack`, `library info` and `library verify`: their JSON, their words, their errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster.cli import library as library_verbs
from cluster.cli import pack as pack_verb
from cluster.errors import CorruptBlob, LibraryError, MoemeshError
from cluster.library.reader import Library
from cluster.types import ExpertId
from support import libraries
from support.checkpoints import case


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    app = typer.Typer()
    pack_verb.register(app)
    library_verbs.register(app)
    return app


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, app: typer.Typer) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("commands")
    source, out = case("qwen3-tied-gqa").write(folder), folder / "out"
    result = run(app, "pack", source, out, "--experts", "int8, int4", "--name", "tiny", "--json")
    return out, json.loads(result)


def run(app: typer.Typer, *args: object, error: type[MoemeshError] | None = None) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    if error is None:
        assert result.exception is None, result.output
    else:
        assert isinstance(result.exception, error)
    return result.stdout


def test_pack_reports_what_it_made(packed: tuple[Path, dict]) -> None:
    out, report = packed
    library = Library.open(out)
    assert report["digest"] == library.digest
    assert (report["name"], report["default_variant"], report["result_type"]) == ("tiny", "int8", "bf16")
    assert report["experts"]["int4"]["bytes"] < report["experts"]["int8"]["bytes"]
    assert report["trunk"]["relative_error"] < 1e-3


def test_pack_in_words(app: typer.Typer, tmp_path: Path) -> None:
    source = case("qwen3-tied-gqa").write(tmp_path)
    output = run(app, "pack", source, tmp_path / "out", "--experts", "f32")
    assert "experts f32" in output
    assert "trunk f32" in output
    run(app, "pack", source, tmp_path / "out", error=LibraryError)


def test_info(app: typer.Typer, packed: tuple[Path, dict]) -> None:
    out, report = packed
    values = json.loads(run(app, "library", "info", out, "--json"))
    assert values["variants"] == ["int8", "int4"]
    assert values["digest"] == report["digest"]
    assert values["spec"]["experts"] == 8
    assert values["bytes"] == sum(file.stat().st_size for file in (out / "blobs").iterdir())
    text = run(app, "library", "info", out)
    assert report["digest"] in text.replace("\n", "")
    assert "int8, int4" in text


def test_verify(app: typer.Typer, packed: tuple[Path, dict], tmp_path: Path) -> None:
    out, _ = packed
    assert json.loads(run(app, "library", "verify", out, "--json"))["ok"] is True
    assert "is sound" in run(app, "library", "verify", out)
    broken = libraries.copy(Library.open(out), tmp_path)
    libraries.flip_bit(broken, broken.expert_ref("int8", ExpertId(0, 0)))
    run(app, "library", "verify", broken.path, error=CorruptBlob)
    result = CliRunner().invoke(app, ["library", "verify", str(broken.path), "--json"])
    assert result.exit_code == 1
    verdict = json.loads(result.stdout)
    assert verdict["ok"] is False
    assert len(verdict["problems"]) == 1
    run(app, "library", "verify", tmp_path, error=LibraryError)
