"""The `moemesh` command: which file a verb is in, and what becomes of errors.

A verb's file has `register(app)`, which adds its commands. Only the file of the verb that is called is
imported; all of them for `moemesh --help`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
import typer.main

from cluster.cli.output import print_error
from cluster.errors import MoemeshError
from kernels import __version__

VERBS = {
    "up": "up",
    "down": "down",
    "status": "status",
    "top": "top",
    "fleet": "fleet",
    "rebalance": "rebalance",
    "drain": "drain",
    "doctor": "doctor",
    "keys": "keys",
    "generate": "generate",
    "chat": "chat",
    "score": "score",
    "embed": "embed",
    "pack": "pack",
    "library": "library",
    "trace": "trace",
    "experiment": "experiment",
    "bench": "bench",
}
"""Verb: module in cluster.cli, in the order of --help."""

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main() -> None:
    """Entry point: exits 0, 1 (failed), 2 (bad usage) or 130 (Ctrl-C)."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line and return its exit code."""
    as_json = "--json" in arguments
    try:
        command = typer.main.get_command(build(arguments))
        answer = command(list(arguments) or ["--help"], prog_name="moemesh", standalone_mode=False)
    except MoemeshError as error:
        print_error(error.code, str(error), as_json)
        return FAILED
    except typer.TyperException as error:
        return _usage(error, arguments, as_json)
    except typer.Abort:
        answer = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone (`| head`); Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if answer == INTERRUPTED:  # what typer makes of Ctrl-C
        if sys.stdout.isatty():
            sys.stdout.write("\n")  # behind "^C", or behind half a line of text
        print_error("CANCELLED", "interrupted", as_json)
    return answer if isinstance(answer, int) else OK


def build(arguments: Sequence[str]) -> typer.Typer:
    """The command tree, with the called verb only if there is one."""
    app = typer.Typer(
        name="moemesh",
        help="Serve Mixture-of-Experts language models from a fleet of small CPU machines.",
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    called = next((word for word in arguments if not word.startswith("-")), "")
    for module in [VERBS[called]] if called in VERBS else VERBS.values():
        importlib.import_module(f"cluster.cli.{module}").register(app)
    return app


def _usage(error: typer.TyperException, arguments: Sequence[str], as_json: bool) -> int:
    message = error.format_message()
    if not message.strip():  # the help of a group of verbs, which has been printed
        return USAGE
    verb = " ".join(["moemesh", *(word for word in arguments[:1] if word in VERBS)])
    print_error("INVALID_ARGUMENT", f"{message.rstrip('.')}; see `{verb} --help`", as_json)
    return USAGE


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"moemesh {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


if __name__ == "__main__":
    main()
