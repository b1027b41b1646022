"""Programs of Debian for hosts of a bed, unpacked and not installed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from fleet.hosts import DOWNLOADS
from support.debian import library_folders, unpacked_here

RSYNC = ("rsync", "libpopt0", "libxxhash0", "libacl1", "liblz4-1", "libzstd1", "libssl3", "zlib1g")
REDIS = ("redis-tools", "redis-server", "libjemalloc2", "liblzf1", "libatomic1", "libssl3", "libsystemd0")

WRAPPER = """#!/bin/sh
LD_LIBRARY_PATH={libraries} exec {program} "$@"
"""


def folder_with(program: str, packages: Sequence[str]) -> Path:
    """A folder for PATH that has the program: the machine's own, or one made of the packages.

    Raises CannotRun.
    """
    if found := shutil.which(program):
        return Path(found).parent
    root = unpacked_here(DOWNLOADS / program, packages)
    script = DOWNLOADS / program / "bin" / program
    script.parent.mkdir(exist_ok=True)
    libraries = ":".join(map(str, library_folders(root)))
    script.write_text(WRAPPER.format(libraries=libraries, program=root / "usr/bin" / program))
    script.chmod(0o755)
    return script.parent
