"""`moemesh fleet render`: files for what else starts fleets: `ray up`, systemd, Kubernetes.

The texts follow from the fleet file alone. Beside them lie the fleet's secrets, made once and in no text.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.output import print_json
from cluster.errors import ClusterError

IMAGE = "moemesh:latest"
SECRETS = "secrets"


def register(fleet: typer.Typer) -> None:
    """Add the command to the group of `moemesh fleet`."""
    fleet.command("render")(render)


def render(
    file: Annotated[Path, typer.Argument(help="Fleet file; docs/fleet.md.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Folder that gets the files; made if it is not there.")] = Path(
        "fleet"
    ),
    image: Annotated[str, typer.Option(help="Container image of the pods.")] = IMAGE,
    as_json: Annotated[bool, typer.Option("--json", help="Print the files' names as JSON.")] = False,
) -> None:
    """Write files for `ray up`, systemd and Kubernetes, and the secrets that the machines share."""
    from cluster.fleet.file import load
    from cluster.fleet.render.files import files
    from cluster.fleet.render.ray_up import ray_up_notes

    described = load(file)
    made = files(described, str(file.resolve()), str((out / SECRETS).resolve()), image)
    for name, text in made.items():
        _write(out / name, text)
    _make_secrets(out / SECRETS)
    notes = ray_up_notes(described)
    if as_json:
        print_json({"folder": str(out), "files": list(made), "notes": notes})
        return
    for name in (*made, SECRETS):
        typer.echo(str(out / name))
    for note in notes:
        typer.echo(f"note: {note}", err=True)


def _write(path: Path, text: str) -> None:
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _make_secrets(path: Path) -> None:
    """Unless they are there: what machines have already must not change."""
    from cluster.fleet.folder import Folder

    folder = Folder(path)
    with _writing(path):
        if not folder.has_secrets():
            folder.write_secrets()
            (path / ".gitignore").write_text("*\n", encoding="utf-8")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ClusterError(f"{path} cannot be written ({error.strerror}); choose another --out") from None
