"""What the command prints and returns when a verb fails, is misused or does not exist."""

import contextlib
import io
import json
import os

import pytest
import typer
from rich.console import Console

from cluster.cli import app, output, values
from cluster.errors import MoemeshError, NotUp
from cluster.sizes import format_bytes
from kernels import __version__


@pytest.fixture
def verb(monkeypatch):
    """Make `moemesh down` do what the test says."""

    def put(action):
        def register(typer_app):
            def down(as_json: bool = typer.Option(False, "--json")):
                action()

            typer_app.command()(down)

        monkeypatch.setattr("cluster.cli.down.register", register)

    return put


def failing(error):
    def action():
        raise error

    return action


def test_an_error_is_one_line_on_stderr_and_exit_1(verb, capsys):
    verb(failing(NotUp("no cluster is up;\nstart one")))
    assert app.run(["down"]) == 1
    assert capsys.readouterr() == ("", "error: no cluster is up; start one\n")


def test_an_error_with_json_is_an_object_on_stdout(verb, capsys):
    verb(failing(MoemeshError("broken")))
    assert app.run(["down", "--json"]) == 1
    out, errors = capsys.readouterr()
    assert json.loads(out) == {"error": {"code": "INTERNAL", "message": "broken"}}
    assert errors == ""


def test_ctrl_c_is_130(verb, capsys):
    verb(failing(KeyboardInterrupt()))
    assert app.run(["down"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("arguments", [["down", "--nix"], ["nix"], ["down", "nix"]])
def test_bad_usage_is_2_and_says_where_help_is(arguments, capsys):
    assert app.run(arguments) == 2
    assert "--help`" in capsys.readouterr().err


def test_a_good_verb_is_0(verb):
    done = []
    verb(lambda: done.append(1))
    assert app.run(["down"]) == 0
    assert done == [1]


def test_the_version_is_the_package_s(capsys):
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out == f"moemesh {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_names_every_verb(arguments, capsys):
    assert app.run(arguments) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in app.VERBS)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("4096", 4096), ("256MiB", 256 << 20), ("1.5 GB", 1_500_000_000), ("2kib", 2048)],
)
def test_sizes(text, count):
    assert values.parse_bytes(text, "--size") == count


@pytest.mark.parametrize("text", ["", "MiB", "-1", "3 parsec", "1.MiB"])
def test_what_is_no_size_is_bad_usage(text):
    with pytest.raises(typer.BadParameter, match="not a size"):
        values.parse_bytes(text, "--size")


@pytest.mark.parametrize("count", [0, 1, 1023, 1024, 64 << 20, 3 << 30, 5 << 40])
def test_sizes_are_written_as_they_are_read(count):
    assert values.parse_bytes(format_bytes(count), "--size") == count


def test_addresses():
    assert values.parse_address("127.0.0.1:8471", "--grpc") == ("127.0.0.1", 8471)
    assert values.parse_address("[::1]:0", "--grpc") == ("::1", 0)


@pytest.mark.parametrize("text", ["", "localhost", ":80", "h:x", "h:70000"])
def test_what_is_no_address_is_bad_usage(text):
    with pytest.raises(typer.BadParameter, match="not an address"):
        values.parse_address(text, "--grpc")


def test_progress_without_a_terminal_is_never_silent_for_long(monkeypatch):
    monkeypatch.setattr(output, "SILENCE_S", 0.0)
    monkeypatch.setattr(output, "BEAT_S", 0.001)
    written = io.StringIO()
    with output.Progress(Console(file=written)) as progress:
        progress.phase("loading")
        while written.getvalue().count("loading (") < 3:
            pass
        progress.done("loaded 3.0 MB")
    assert "loaded 3.0 MB" in written.getvalue().splitlines()


def test_progress_on_a_terminal_keeps_what_is_done():
    written = io.StringIO()
    with output.Progress(Console(file=written, force_terminal=True)) as progress:
        progress.phase("loading")
        progress.done("loaded")
    assert "✓" in written.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_whose_reader_has_gone_ends_nothing(terminal):
    read, write = os.pipe()
    os.close(read)
    broken = open(write, "w", buffering=1)  # noqa: SIM115  closing it fails
    with output.Progress(output.ProgressConsole(file=broken, force_terminal=terminal)) as progress:
        for number in range(3):
            progress.phase(f"loading {number}")
            progress.done(f"loaded {number}")
    with contextlib.suppress(BrokenPipeError):
        broken.close()


def test_the_grpcurl_line_that_up_prints_is_a_request() -> None:
    from google.protobuf import json_format

    from cluster.cli.up import GRPCURL_REQUEST
    from protos import generation_pb2

    parsed = json_format.Parse(GRPCURL_REQUEST, generation_pb2.GenerateRequest())
    assert parsed.sampling.max_tokens == 16
