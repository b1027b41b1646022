"""Whether this machine lets us make hosts: what is missing otherwise, in words for a test that is skipped."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys

TOOLS = ("unshare", "nsenter", "mount", "ip")
NAMESPACES = ("--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--mount-proc")
TRY_S = 10.0


@functools.cache
def missing() -> str:
    """Why there can be no hosts here; "" if there can."""
    if sys.platform != "linux":
        return f"hosts are made of Linux namespaces, this is {sys.platform}"
    for tool in TOOLS:
        if not shutil.which(tool):
            return f"no {tool} here (Debian: apt-get install iproute2 util-linux)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun cannot be opened; help: run as root, in a container with --device /dev/net/tun"
    command = ["unshare", *NAMESPACES, "mount", "-t", "tmpfs", "tmpfs", "/run"]
    tried = subprocess.run(command, capture_output=True, text=True, timeout=TRY_S)
    if tried.returncode:
        return f"no namespaces here: {tried.stderr.strip()}; help: run as root, with CAP_SYS_ADMIN"
    return ""
