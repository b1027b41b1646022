"""A host is a machine of its own for what runs on it, and its links do what they are told."""

import signal
import sys
import time
from pathlib import Path

import psutil

from fleet import faults
from fleet.links import Link
from support.clusters import wait_until

PING = """
import socket, sys, time
with socket.create_connection(("b", 7000), 2) as one:
    begin = time.monotonic()
    one.settimeout(2)
    one.sendall(b"x")
    assert one.recv(1) == b"x"
    print(time.monotonic() - begin)
"""
ECHO = """
import socket
server = socket.create_server(("b", 7000))
print("listens", flush=True)
while True:
    client, _ = server.accept()
    client.sendall(client.recv(1))
    client.close()
"""
SPIN = "print('spins', flush=True)\nwhile True: pass"


def python(host, script):
    process = host.spawn([sys.executable, "-c", script])
    process.output.readline()
    return process


def test_hosts_and_their_links(three):
    a, b = three.hosts["a"], three.hosts["b"]
    assert a.run(["hostname"]) == "a\n"
    a.run(["touch", "/tmp/mine"])
    assert "mine" in a.run(["ls", "/tmp"])
    assert "mine" not in b.run(["ls", "/tmp"])
    assert not Path("/tmp/mine").exists()

    python(b, ECHO)
    quick = float(a.run([sys.executable, "-c", PING]))
    three.link("a", "b", Link(delay_s=0.1))
    assert quick < 0.1 <= float(a.run([sys.executable, "-c", PING]))
    three.link("b", "a", Link(cut=True))
    assert a.run([sys.executable, "-c", PING], check=False) == ""
    three.connect("a", Link())
    assert float(a.run([sys.executable, "-c", PING])) > 0

    b.kill()
    assert not b.processes()
    assert a.run([sys.executable, "-c", PING], check=False) == ""


def test_faults_of_processes(three):
    host = three.hosts["c"]
    process = python(host, SPIN)
    seen = psutil.Process(process.pid)
    assert [each.pid for each in host.processes()] == [process.pid]
    with faults.frozen(host):
        wait_until(lambda: seen.status() == psutil.STATUS_STOPPED, "it stops")
    wait_until(lambda: seen.status() == psutil.STATUS_RUNNING, "it goes on")
    with faults.slowed(process, 0.2):
        assert busy(seen) < 0.4
    process.send(signal.SIGKILL)
    process.wait(5)
    folder = three.folder / "disk"
    folder.mkdir()
    faults.small_disk(host, folder, 1 << 20)
    faults.fill(host, folder)
    assert "No space left" in host.run(["sh", "-c", f"cp /etc/hosts {folder}/more 2>&1"], check=False)
    assert not list(folder.iterdir()), "other hosts, and the machine, have another disk there"


def busy(process, seconds=0.5):
    """Part of a core that it used."""
    before = process.cpu_times().user
    time.sleep(seconds)
    return (process.cpu_times().user - before) / seconds
