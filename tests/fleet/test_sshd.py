"""Real sshd on hosts of the bed: who may log in, and what a command finds there."""

from __future__ import annotations

from pathlib import Path

import pytest

from fleet import sshd
from fleet.bed import Bed
from fleet.hosts import Host
from support.debian import CannotRun

pytestmark = pytest.mark.fleet

OPTIONS = ("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null")


@pytest.fixture
def keys(tmp_path: Path, hosts_can_be_made: None) -> tuple[Path, Path]:
    """A private key that may log in, and one that may not."""
    try:
        sshd.find_sshd()
    except CannotRun as reason:
        pytest.skip(str(reason))
    good, other = tmp_path / "good", tmp_path / "other"
    sshd.new_key(good)
    sshd.new_key(other)
    return good, other


def ssh(host: Host, key: str, command: str) -> str:
    return host.run(
        ["sh", "-c", f"ssh {' '.join(OPTIONS)} -o ConnectTimeout=2 -i {key} root@b '{command}' 2>&1"],
        check=False,
    )


def test_a_host_is_reached_by_its_key_alone(keys: tuple[Path, Path], three: Bed) -> None:
    good, other = (three.folder / key.name for key in keys)
    for key in keys:
        (three.folder / key.name).write_bytes(key.read_bytes())
        (three.folder / key.name).chmod(0o600)
    a, b = three.hosts["a"], three.hosts["b"]
    sshd.serve(b, allowed=keys[0].with_name("good.pub"))
    assert "b\n" in ssh(a, str(good), "hostname")
    assert str(b.spec.folder) in ssh(a, str(good), "echo $MOEMESH_STATE_DIR")
    assert "Permission denied (publickey)" in ssh(a, str(other), "hostname")
    three.part("b")
    assert "timed out" in ssh(a, str(good), "hostname")
