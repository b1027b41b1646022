"""The first process of a host: sets its namespaces up, takes over orphans, and ends when its parent does.

    python init.py SPEC       (JSON: what `Spec.to_json` in tests/fleet/hosts.py makes)

With it everything in the host ends, since it is process 1 of the host's own process numbers.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any


def main(spec: dict[str, Any]) -> None:
    socket.sethostname(spec["name"])
    folder = Path(spec["folder"])
    _call("ip", "link", "set", "lo", "up")
    for file in ("hosts", "passwd"):
        _call("mount", "--bind", str(folder / "etc" / file), f"/etc/{file}")
    for place in ("/dev/shm", "/run"):
        _call("mount", "-t", "tmpfs", "tmpfs", place)
    keep = [Path(each) for each in spec["keep"]]
    for place in map(Path, spec["private"]):
        _make_private(place, folder / "private" / str(place).strip("/").replace("/", "-"), keep)
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets ended orphans at once
    sys.stdin.read()


def _make_private(place: Path, own: Path, keep: list[Path]) -> None:
    """Have `place` be the folder `own` in this host, but for what lies in `keep`. One that is below a place
    made private before is private already."""
    if not place.exists():
        place.mkdir(parents=True)
        return
    for each in keep:
        if each.is_relative_to(place):
            inside = own / each.relative_to(place)
            inside.mkdir(parents=True, exist_ok=True)
            _call("mount", "--bind", str(each), str(inside))
    own.mkdir(parents=True, exist_ok=True)
    _call("mount", "--rbind", str(own), str(place))


def _call(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    os.chdir("/")
    main(json.loads(sys.argv[1]))
