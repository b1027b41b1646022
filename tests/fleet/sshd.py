"""Real sshd on a host of a bed: Debian's openssh-server, unpacked and not installed, with its own keys."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from fleet.hosts import DOWNLOADS, ROOT, Host, Process
from support.debian import library_folders, unpacked_here

PORT = 22
UP_S = 10.0
LIBRARIES = ("libwrap0", "libnsl2", "libtirpc3", "libgssapi-krb5-2", "libkrb5-3", "libk5crypto3")
MORE_LIBRARIES = ("libkrb5support0", "libkeyutils1", "libcom-err2", "libpam0g", "libaudit1", "libcap-ng0")
USER = "sshd:x:111:65534::/run/sshd:/usr/sbin/nologin\n"
"""As which sshd runs what has not logged in yet; in a host's own /etc/passwd."""

CONFIG = """Port {port}
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
SetEnv {environment}
"""


def find_sshd() -> tuple[str, str]:
    """sshd, and where its libraries are, "" for where they always are. Raises CannotRun."""
    if found := shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin"):
        return found, ""
    root = unpacked_here(DOWNLOADS / "sshd", ("openssh-server", *LIBRARIES, *MORE_LIBRARIES))
    return str(root / "usr/sbin/sshd"), ":".join(map(str, library_folders(root)))


def new_key(file: Path) -> Path:
    """A key pair in `file` and `file`.pub. Returns the public one's file."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)]
    subprocess.run(command, check=True)
    return file.with_name(f"{file.name}.pub")


def serve(host: Host, *, allowed: Path, port: int = PORT) -> Process:
    """sshd on the host, listening. allowed: the public key that may log in as root.

    Commands find the environment of the host's other processes. Raises CannotRun where there is no sshd.
    """
    program, libraries = find_sshd()
    folder = host.spec.folder / "ssh"
    folder.mkdir()
    new_key(folder / "host_key")
    shutil.copyfile(allowed, folder / "authorized_keys")
    passwd = host.spec.folder / "etc" / "passwd"
    if "\nsshd:" not in passwd.read_text():
        with open(passwd, "a") as file:
            file.write(USER)
    host.run(["install", "-d", "-m", "755", "/run/sshd"])
    config = folder / "sshd_config"
    config.write_text(
        CONFIG.format(
            port=port, address=host.address, folder=folder, environment=" ".join(_environment(host))
        )
    )
    process = host.spawn(
        [program, "-D", "-e", "-f", str(config)], folder / "log", {"LD_LIBRARY_PATH": libraries}
    )
    _wait(host, port, folder / "log")
    return process


def _environment(host: Host) -> list[str]:
    """Of what logs in: as of commands that are run on the host directly, the venv's programs first."""
    path = f"{Path(sys.executable).parent}:{host.environment['PATH']}"
    ours = {name: value for name, value in host.environment.items() if name.startswith(("MOEMESH", "RAY_"))}
    values = {"PATH": path, "PYTHONPATH": str(ROOT), **ours}
    return [f'"{name}={value}"' for name, value in sorted(values.items())]


def _wait(host: Host, port: int, log: Path) -> None:
    script = f"import socket; socket.create_connection(({host.address!r}, {port}), 1).close()"
    deadline = time.monotonic() + UP_S
    while True:
        try:
            host.run([sys.executable, "-S", "-c", script])
            return
        except subprocess.CalledProcessError:
            assert time.monotonic() < deadline, f"sshd on {host.name} did not start: {log.read_text()}"
