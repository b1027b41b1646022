"""Sessions of their own, in processes that are made for it: the one that runs the tests keeps its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.fleet.roles import cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sessions share cores on Linux only")

LEADS_A_GROUP = """
import json, os
from pathlib import Path
from cluster.fleet.roles import cores
before = os.getpgid(0)
cores.share({nice})
group = cores.AUTOGROUP.read_text() if cores.AUTOGROUP.exists() else ""
own = [os.getpid(), before, os.getpgid(0), os.getsid(0), os.nice(0)]
print(json.dumps([*own, group, cores.begin_session()]))
"""

ORPHAN = """
import json, os, subprocess, sys, time
sys.stdout.close()
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
from cluster.fleet.roles import cores
before = os.getpgid(0), os.getsid(0)
made = cores.begin_session()
os.write(2, json.dumps([made, before == (os.getpgid(0), os.getsid(0))]).encode())
"""

PARENT = f"""
import os, subprocess, sys
subprocess.Popen([sys.executable, "-c", {ORPHAN!r}, str(os.getpid())], process_group=0)
"""


def run_as_group_leader(nice):
    code = LEADS_A_GROUP.format(nice=nice)
    done = subprocess.run(
        [sys.executable, "-c", code], process_group=0, capture_output=True, text=True, timeout=60, check=True
    )
    return json.loads(done.stdout)


def test_a_group_leader_gets_a_session_and_keeps_its_number():
    pid, before, group, session, nice, autogroup, again = run_as_group_leader(3)
    assert (before, group, session) == (pid, pid, pid)
    assert nice == min(19, os.nice(0) + 3)
    assert autogroup == "" or autogroup.endswith("nice 3\n")
    assert again is True
    assert os.getsid(0) != pid


def test_without_an_order_everything_stays():
    pid, before, group, session, nice, _, _ = run_as_group_leader(None)
    assert (before, group) == (pid, pid)
    assert session == os.getsid(0)
    assert nice == os.nice(0)


def test_who_has_no_parent_in_its_session_stays_where_it_is():
    done = subprocess.run(
        [sys.executable, "-c", PARENT], start_new_session=True, capture_output=True, text=True, timeout=60
    )
    assert json.loads(done.stderr) == [False, True]


@pytest.fixture
def orders(monkeypatch):
    """What is written; the first two are refused as Linux refuses those that come too fast."""
    written = []

    class File:
        def write_text(self, text):
            written.append(text)
            if len(written) <= 2:
                raise BlockingIOError

    monkeypatch.setattr(cores, "AUTOGROUP", File())
    monkeypatch.setattr(cores, "EVERY_S", 0.0)
    return written


def test_an_order_that_comes_too_soon_is_given_again(orders):
    assert cores.weigh(7)
    assert orders == ["7"] * 3


def test_it_gives_up_where_linux_takes_no_order(orders, monkeypatch):
    monkeypatch.setattr(cores, "ATTEMPTS", 2)
    assert not cores.weigh(7)
    assert len(orders) == 2


def test_no_order_where_sessions_share_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(cores, "AUTOGROUP", tmp_path / "no" / "autogroup")
    assert not cores.weigh(7)
    assert not Path(cores.AUTOGROUP).exists()
