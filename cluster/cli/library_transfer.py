"""`moemesh library serve DIR` and `moemesh library fetch SOURCE DIR`: libraries between machines."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.output import print_json
from cluster.cli.progress import progress_bar
from cluster.dispatch.handshake import Identity, cluster_key, split_address
from cluster.errors import ConfigError, InvalidRequest
from cluster.expert.blob_client import BlobClient
from cluster.expert.blob_server import BlobServer
from cluster.expert.fetch import fetch_blobs, fetch_manifest
from cluster.fleet.folder import Folder
from cluster.library.format import BlobRef, Manifest
from cluster.library.reader import Library

LOOPBACK = ("127.0.0.1", "::1", "localhost")
ALL, NONE = "all", "none"

KeyFile = Annotated[
    Path | None,
    typer.Option(
        help="The cluster's key; left out: $MOEMESH_CLUSTER_KEY_FILE, or that of the cluster that is up.",
        show_default=False,
        exists=True,
        dir_okay=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]


def register(verbs: typer.Typer) -> None:
    verbs.command("serve")(serve_command)
    verbs.command("fetch")(fetch_command)


def serve_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder of the library")],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="port 0: any that is free")
    ] = "127.0.0.1:0",
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Give a library's blobs to nodes and to `library fetch`, until Ctrl-C."""
    library = Library.open(folder)
    host, port = split_address(listen)
    key = _key(key_file)
    if not key and host not in LOOPBACK:
        raise ConfigError("a port that others can reach needs the cluster's key; give --key-file FILE")
    server = BlobServer(library, Identity("hub", "hub", library=library.digest, key=key), host, port)
    address = server.start()
    try:
        if as_json:
            print_json({"address": address, "library": library.digest})
        else:
            typer.echo(f"{library.name} is served at {address}; Ctrl-C ends it")
        threading.Event().wait()
    finally:
        server.shutdown()


def fetch_command(
    source: Annotated[
        str,
        typer.Argument(
            help="HOST:PORT of a `library serve`, or a node's, as `status --json` has it at blobs"
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="folder of the library, made if there is none")
    ],
    experts: Annotated[
        str, typer.Option(help="all, none (what routers and gateways need), or variants, comma separated")
    ] = ALL,
    only_manifest: Annotated[
        bool, typer.Option("--only-manifest", help="what a node needs that fetches its experts itself")
    ] = False,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a library, or part of one; goes on where an earlier attempt has ended."""
    begin = time.monotonic()
    with BlobClient(Identity("tool", "moemesh", key=_key(key_file)), wait=_sleep) as client:
        library = fetch_manifest(client, source, folder)
        refs = () if only_manifest else wanted(library.manifest, experts)
        with progress_bar("fetching") as progress:
            count = fetch_blobs(client, [source], library, refs, progress)
        counts = client.counts
    seconds = time.monotonic() - begin
    if as_json:
        print_json({"library": library.digest, "name": library.name, "seconds": seconds, **asdict(counts)})
        return
    typer.echo(
        f"{library.name} is in {folder}: {count} blobs came, {counts.bytes:,} bytes in {seconds:.1f} s"
    )


def wanted(manifest: Manifest, experts: str) -> tuple[BlobRef, ...]:
    """experts: as the option. Raises InvalidRequest for a variant that there is not."""
    if experts == ALL:
        return manifest.refs()
    names = [] if experts == NONE else [name.strip() for name in experts.split(",")]
    if unknown := [name for name in names if name not in manifest.experts]:
        raise InvalidRequest(
            f"there is no variant {unknown[0]!r}; give {ALL}, {NONE}, or of {', '.join(manifest.experts)}"
        )
    refs = [*manifest.common_refs(), *(ref for name in names for ref in manifest.experts[name].refs())]
    return tuple(dict.fromkeys(refs))


def _key(file: Path | None) -> bytes:
    return file.read_bytes() if file is not None else cluster_key() or Folder().cluster_key()


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False
