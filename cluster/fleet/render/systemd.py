"""A systemd unit for each machine, by which it joins the fleet at boot and again whenever it has ended."""

from __future__ import annotations

from pathlib import PurePosixPath

from cluster.fleet.file import FleetFile, Host

FILE = "/etc/moemesh/fleet.yaml"
"""The fleet file on every machine."""

UNIT = """\
[Unit]
Description=moemesh: {host} of the fleet {fleet}
After=network-online.target
Wants=network-online.target
# A machine that cannot reach the head goes on trying.
StartLimitIntervalSec=0

[Service]
Type=exec
User={user}
Environment=MOEMESH_STATE_DIR={state}
ExecStart={venv}/bin/moemesh fleet join --block --host {host} {file}
Restart=always
# A head that was killed is missed: nothing is repaired until it is back.
RestartSec=1
# It ends Ray itself; what is left after the time limit is killed.
KillMode=mixed
TimeoutStopSec=60
LimitNOFILE=65536
NoNewPrivileges=yes
ProtectSystem=full

[Install]
WantedBy=multi-user.target
"""


def unit(fleet: FleetFile, host: Host) -> str:
    """To be installed as /etc/systemd/system/moemesh.service on the host, beside FILE."""
    return UNIT.format(
        host=host.name,
        fleet=fleet.name,
        user=host.ssh.user or "moemesh",
        state=PurePosixPath(host.storage) / "state",
        venv=host.venv,
        file=FILE,
    )
