"""The verbs `pack` and `library …`: their JSON, their words, their errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster.cli import library as library_verbs
from cluster.cli import pack as pack_verb
from cluster.errors import (
    ConfigError,
    CorruptBlob,
    IncompleteLibrary,
    InvalidRequest,
    LibraryError,
    MoemeshError,
    ProtocolError,
    Unavailable,
)
from cluster.library.reader import Library
from cluster.types import ExpertId
from support import libraries
from support.blobs import blob_server
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


def test_a_partial_library_says_what_lacks(
    app: typer.Typer, packed: tuple[Path, dict], tmp_path: Path
) -> None:
    partial = libraries.copy(Library.open(packed[0]), tmp_path)
    gone = partial.expert_ref("int8", ExpertId(0, 0))
    partial.blobs.file(gone).unlink()
    values = json.loads(run(app, "library", "info", partial.path, "--json"))
    assert (values["missing"], values["missing_bytes"]) == (1, gone.bytes)
    run(app, "library", "verify", partial.path, error=IncompleteLibrary)
    total = len(partial.manifest.refs())
    said = run(app, "library", "verify", partial.path, "--partial")
    assert f"is here in part: {total - 1} of {total} blobs, all of them sound" in said
    verdict = json.loads(run(app, "library", "verify", partial.path, "--partial", "--json"))
    assert (verdict["ok"], verdict["missing"]) == (True, 1)
    libraries.flip_bit(partial, partial.expert_ref("int8", ExpertId(0, 1)))
    run(app, "library", "verify", partial.path, "--partial", error=CorruptBlob)


def test_fetch_takes_what_it_is_told(
    app: typer.Typer, packed: tuple[Path, dict], tmp_path: Path, state_dir: Path
) -> None:
    library, out = Library.open(packed[0]), tmp_path / "new"
    with blob_server(library, key=b"") as hub:

        def fetch(*more: str) -> dict:
            return json.loads(run(app, "library", "fetch", hub.address, out, *more, "--json"))

        assert fetch("--only-manifest")["blobs"] == 1
        common = fetch("--experts", "none")
        assert common["blobs"] == len(library.manifest.common_refs())
        Library.open(out).require_common()
        assert fetch("--experts", "int4")["blobs"] == len(library.variant("int4").refs())
        run(app, "library", "fetch", hub.address, out, "--experts", "int2", error=InvalidRequest)
        assert "blobs came" in run(app, "library", "fetch", hub.address, out)
        assert fetch()["blobs"] == 0
    assert json.loads(run(app, "library", "verify", out, "--json"))["ok"]
    run(app, "library", "fetch", hub.address, out, error=Unavailable)


def test_serve_refuses_what_would_give_a_library_to_anybody(
    app: typer.Typer, packed: tuple[Path, dict], tmp_path: Path, state_dir: Path
) -> None:
    run(app, "library", "serve", packed[0], "--listen", "0.0.0.0:0", error=ConfigError)
    run(app, "library", "serve", packed[0], "--listen", "nowhere", error=ProtocolError)
    run(app, "library", "serve", tmp_path, error=LibraryError)
