"""Libraries that differ from the bundled one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cluster.library.bundled import open_model
from cluster.library.format import MANIFEST_NAME
from cluster.library.reader import Library

NAME = "another"


def another(to: Path) -> Library:
    """With the bundled one's experts in another order, so that every token is another one."""
    shutil.copytree(open_model().path, to)
    file = to / MANIFEST_NAME
    manifest = json.loads(file.read_text())
    manifest["name"] = NAME
    for variant in manifest["experts"].values():
        variant["blobs"] = [layer[::-1] for layer in variant["blobs"]]
    file.write_text(json.dumps(manifest))
    return Library.open(to)


def damage_trunk(folder: Path) -> None:
    """Other bytes in the file of the last norm, of the same length."""
    library = Library.open(folder)
    file = library.blobs.file(library.manifest.trunk.final.ref)
    file.write_bytes(bytes(len(file.read_bytes())))
