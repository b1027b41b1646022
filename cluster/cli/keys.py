"""`moemesh keys`: who may use a gateway, and the certificates that it and its clients show."""

from __future__ import annotations

import dataclasses
import datetime
import os
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cluster.cli.output import print_json, table_console
from cluster.errors import ConfigError
from cluster.gateway.security import keys as store
from cluster.gateway.security.keys import Key, Scope

keys = typer.Typer(help="Make, list and revoke API keys; make certificates.", no_args_is_help=True)

File = Annotated[
    Path | None,
    typer.Option("--file", help="The file of keys, as given to `moemesh up --keys`.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys")


def default_file() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "moemesh" / "keys.json"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Whose it is, for the list.")],
    scope: Annotated[
        list[Scope],
        typer.Option(help="infer: models; observe: metrics; admin: the rest. May be repeated."),
    ] = [Scope.infer],  # noqa: B006 - typer reads it, nobody changes it
    requests_per_minute: Annotated[int, typer.Option(min=0, help="0: no limit.")] = 0,
    concurrent: Annotated[int, typer.Option(min=0, help="Requests at once; 0: no limit.")] = 0,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once: only its hash is kept. Gateways know it at once."""
    path = file or default_file()
    known = store.read(path) if path.exists() else ()
    key, record = store.create(name, scope, _now().isoformat(), requests_per_minute, concurrent)
    store.write(path, (*known, record))
    if as_json:
        print_json({"key": key, "file": str(path), **_shown(record)})
    else:
        typer.echo(key)
        typer.echo(f"kept as a hash in {path}; revoke it with `moemesh keys revoke {record.id}`", err=True)


@keys.command("list")
def list_keys(file: File = None, as_json: AsJson = False) -> None:
    """Show ids, names, scopes and limits; the keys themselves are not kept."""
    known = store.read(file or default_file())
    if as_json:
        print_json({"keys": [_shown(record) for record in known]})
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("id", "name", "scopes", "per minute", "at once", "created", "revoked"):
        table.add_column(column)
    for record in known:
        limits = [str(value or "–") for value in (record.requests_per_minute, record.concurrent)]
        dates = [record.created, record.revoked or "–"]
        table.add_row(record.id, record.name, ", ".join(record.scopes), *limits, *dates)
    table_console().print(table)


@keys.command("revoke")
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="From `moemesh keys list`.")],
    file: File = None,
) -> None:
    """Refuse a key from now on; running requests of it end by themselves."""
    path = file or default_file()
    known = store.read(path)
    if key_id not in {record.id for record in known}:
        raise ConfigError(f"{path} has no key {key_id!r}; see `moemesh keys list`")
    now = _now().isoformat()
    changed = [
        dataclasses.replace(record, revoked=record.revoked or now) if record.id == key_id else record
        for record in known
    ]
    store.write(path, changed)


@keys.command("ca")
def authority(
    folder: Annotated[Path, typer.Argument(help="Gets ca.pem, for clients, and ca.key, to keep.")],
) -> None:
    """Make a certificate authority."""
    from cluster.gateway.security import authority as make

    paths = folder / make.CA_CERTIFICATE, folder / make.CA_KEY
    if any(path.exists() for path in paths):
        raise ConfigError(f"{folder} has an authority already; choose another folder")
    make.write(make.make_authority(_now()), *paths)
    typer.echo(f"{paths[0]} is what clients trust: --ca {paths[0]}; keep {paths[1]} to yourself")


@keys.command("certificate")
def certificate(
    folder: Annotated[Path, typer.Argument(help="Of the authority, from `moemesh keys ca`.")],
    name: Annotated[str, typer.Argument(help="Gets NAME.pem and NAME.key in the same folder.")],
    host: Annotated[
        list[str], typer.Option(help="Name or address of a server that shows it. May be repeated.")
    ] = ["localhost", "127.0.0.1"],  # noqa: B006 - typer reads it, nobody changes it
    days: Annotated[int, typer.Option(min=1, help="How long it is good for.")] = 90,
) -> None:
    """Make a certificate, for a server or a client. Over an old one: gateways take it up at once."""
    from cluster.gateway.security import authority as make

    if name == "ca" or not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ConfigError(f"a certificate cannot be called {name!r}; take letters, digits, - _ .")
    signer = make.Pair(_read(folder / make.CA_CERTIFICATE), _read(folder / make.CA_KEY))
    made = make.make_certificate(signer, name, host, _now(), days)
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    make.write(made, *paths)
    typer.echo(f"{paths[0]} and {paths[1]}, for {', '.join(host)}, {days} days")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); make an authority with `moemesh keys ca`"
        ) from None


def _shown(record: Key) -> dict[str, object]:
    return {name: value for name, value in dataclasses.asdict(record).items() if name != "hash"}
