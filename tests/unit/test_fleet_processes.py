"""Processes are known by pid and start time; ending them reaches every descendant and nobody else."""

import subprocess
import sys

import pytest

from cluster.fleet import processes
from cluster.fleet.processes import Mark

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def start():
    made = []

    def run(code, **options):
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
        made.append(process)
        return process, process.stdout.readline().strip()

    yield run
    for process in made:
        process.kill()
        process.communicate()


def test_another_process_with_the_same_pid_is_not_the_one(start):
    process, _ = start(STUBBORN)
    one = processes.mark(process.pid)
    assert processes.alive(one)
    assert not processes.alive(one._replace(started=one.started - 10))
    assert processes.family([one._replace(started=one.started - 10)]) == []
    assert processes.end([one._replace(started=one.started - 10)], grace_s=0.1) == []
    assert processes.alive(one)


def test_a_family_is_found_and_ended(start):
    process, child = start(PARENT)
    family = processes.family([processes.mark(process.pid)])
    assert [one.pid for one in family] == [process.pid, int(child)]
    assert processes.end(family, grace_s=10.0) == []
    assert not any(processes.alive(one) for one in family)


def test_a_session_is_found_after_its_leader_has_died(start):
    process, child = start(PARENT, start_new_session=True)
    leader = processes.mark(process.pid)
    assert {one.pid for one in processes.session(leader)} == {process.pid, int(child)}
    process.kill()
    process.wait()
    left = processes.session(leader)
    assert [one.pid for one in left] == [int(child)]
    assert processes.session(leader._replace(started=left[0].started + 60)) == []
    assert processes.kill(left) == []


def test_what_ignores_sigterm_is_killed(start):
    process, _ = start(STUBBORN)
    one = processes.mark(process.pid)
    assert processes.end([one], grace_s=0.1) == []
    assert not processes.alive(one)


def test_a_process_that_never_was_is_dead():
    assert processes.mark(2**22 + 1) is None
    assert not processes.alive(Mark(2**22 + 1, 0.0))
    assert processes.name(Mark(2**22 + 1, 0.0)) == ""
