"""The file for Ray's cluster launcher, `ray up`.

`provider: local` has one type of node and one set of commands, so every machine runs the same `moemesh fleet
join`, which finds its own record in the fleet file. The head's Ray joins the other machines, over SSH, while
the head's last command waits for them and starts the roles.
"""

from __future__ import annotations

from collections.abc import Iterator

from cluster.fleet.file import FleetFile, Host
from cluster.fleet.render.written import dump

HOME_FILE = "~/.config/moemesh/fleet.yaml"
"""The fleet file on every machine; Ray's launcher copies it."""

HOME_SECRETS = "~/.config/moemesh/secrets"
"""Likewise what `fleet render` made for the fleet: token and cluster.key."""

BOOTSTRAP = "~/ray_bootstrap_config.yaml"
"""Written on the head by `ray up`: by it the head's Ray starts the workers."""

INSTEAD = ": ray start --autoscaling-config;"
"""Does nothing. Ray's launcher looks for these words, and warns that nothing starts where they are not."""

QUIETLY = "export TERM=dumb; "
"""Ray runs these on a terminal that nobody looks at: its log wants lines, and no spinners."""


def ray_up(fleet: FleetFile, path: str, secrets: str) -> str:
    """path: of the fleet file here, absolute; secrets: likewise the folder with token and cluster.key."""
    head = fleet.head
    workers = [host for host in fleet.hosts if host is not head]
    auth = {"ssh_user": head.ssh.user} if head.ssh.user else {}
    if head.ssh.key:
        auth["ssh_private_key"] = head.ssh.key
    values = {
        "cluster_name": fleet.name,
        "max_workers": len(workers),
        "upscaling_speed": max(1, len(workers)),  # else Ray's monitor begins with one machine every 5 s
        "provider": {
            "type": "local",
            "head_ip": head.address,
            "worker_ips": [host.address for host in workers],
        },
        "auth": auth,
        "file_mounts": {HOME_FILE: path, HOME_SECRETS: secrets},
        "head_start_ray_commands": [
            _command(fleet, "leave"),
            f"{INSTEAD} {_join(fleet)} --autoscaling-config {BOOTSTRAP}",
            _command(fleet, "serve"),
        ],
        "worker_start_ray_commands": [QUIETLY + _command(fleet, "leave"), QUIETLY + _join(fleet)],
    }
    notes = "".join(f"# {note}\n" for note in ray_up_notes(fleet))
    return f"# ray up --no-config-cache ray-cluster.yaml; moemesh down --fleet\n{notes}{dump(values)}"


def ray_up_notes(fleet: FleetFile) -> list[str]:
    """What `ray up` cannot know of this fleet, and what to do: it has one SSH user and key, and no port."""
    return [note for host in fleet.hosts for note in _notes(host, fleet.head)]


def _notes(host: Host, head: Host) -> Iterator[str]:
    if not head.ssh.user and host is head:
        yield "ray up needs an SSH user; give the fleet file ssh.user"
    for what in ("user", "key"):
        if getattr(host.ssh, what) != getattr(head.ssh, what):
            yield f"ray up reaches {host.name} with the head's SSH {what}, not its own; start it by systemd"
    if host.ssh.port != head.ssh.port or host.ssh.port != 22:
        yield f"ray up knows no SSH ports; say `Host {host.address}`, `Port {host.ssh.port}` in ~/.ssh/config"


def _join(fleet: FleetFile) -> str:
    return f"{_command(fleet, 'join')} --secrets {HOME_SECRETS}"


def _command(fleet: FleetFile, verb: str) -> str:
    """One for all machines; where moemesh lies in different folders it takes the one it finds."""
    folders = sorted({host.venv for host in fleet.hosts})
    if len(folders) == 1:
        return f"{folders[0]}/bin/moemesh fleet {verb} {HOME_FILE}"
    found = f"for venv in {' '.join(folders)}; do test -x $venv/bin/moemesh && break; done"
    return f"{found}; $venv/bin/moemesh fleet {verb} {HOME_FILE}"
