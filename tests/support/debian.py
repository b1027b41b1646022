"""Debian packages unpacked into a folder: programs for a test, without installing anything."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

MIRROR = "http://deb.debian.org/debian"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class CannotRun(Exception):
    """This machine lacks something, or a download failed: no reason to call what is tested wrong."""


def unpacked_here(folder: Path, packages: Sequence[str]) -> Path:
    """The same for this machine's own Debian. Raises CannotRun."""
    release = platform.freedesktop_os_release()
    architecture = ARCHITECTURES.get(platform.machine())
    if release.get("ID") != "debian" or architecture is None:
        raise CannotRun(f"{packages[0]} is fetched on Debian for {' and '.join(ARCHITECTURES)} alone")
    return unpacked(folder, packages, architecture, release["VERSION_CODENAME"])


def library_folders(root: Path) -> list[Path]:
    """Where unpacked packages of this machine's architecture have their libraries."""
    triple = f"{platform.machine()}-linux-gnu"
    return [root / "usr/lib" / triple, root / "lib" / triple]


def unpacked(folder: Path, packages: Sequence[str], architecture: str, suite: str) -> Path:
    """Root folder of a Debian with these packages alone, made in `folder` unless it is there.

    Raises CannotRun.
    """
    root = folder / "root"
    if root.is_dir():
        return root
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise CannotRun(f"no {tool} here to fetch {packages[0]} with")
    if not KEYRING.exists():
        raise CannotRun(f"no {KEYRING} to check Debian's packages with (debian-archive-keyring)")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = Path(scratch)
        config = _apt_config(work, architecture, suite)
        fetch(["apt-get", "update"], work, config)
        (work / "debs").mkdir()
        fetch(["apt-get", "download", *packages], work / "debs", config)
        for package in sorted((work / "debs").glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(work / "root")], check=True)
        (work / "root").rename(root)
    return root


def _apt_config(work: Path, architecture: str, suite: str) -> dict[str, str]:
    """Variables that make apt-get work for it in `work` and leave the machine's own state alone."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (work / name).mkdir(parents=True, exist_ok=True)
    (work / "status").touch()
    source = f"deb [arch={architecture} signed-by={KEYRING}] {MIRROR} {suite} main\n"
    (work / "sources.list").write_text(source)
    (work / "apt.conf").write_text(
        f"""APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "root";
Dir::State "{work}/state";
Dir::State::status "{work}/status";
Dir::Cache "{work}/cache";
Dir::Etc::sourcelist "{work}/sources.list";
Dir::Etc::sourceparts "-";
Acquire::Languages "none";
"""
    )
    return {"APT_CONFIG": str(work / "apt.conf")}


def fetch(command: Sequence[str], where: Path, more: Mapping[str, str]) -> None:
    """Run a command that needs the network. Raises CannotRun with the last line of what it said."""
    print(" ".join(map(str, command[:4])), "…", flush=True)
    run = subprocess.run(
        command,
        cwd=where,
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if run.returncode:
        lines = run.stdout.strip().splitlines() or ["it said nothing"]
        raise CannotRun(f"{command[0]} failed: {lines[-1]}")
