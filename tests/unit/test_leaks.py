"""The leak checks themselves: what is left is named, what is ended in time is not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

from support.leaks import SESSION_VARIABLE, Leftovers, files, tagged_processes

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_thread_is_named_until_it_ends() -> None:
    check, stop = Leftovers(), threading.Event()
    thread = threading.Thread(target=stop.wait, name="forgotten")
    thread.start()
    assert any("forgotten" in left for left in check.new_since(grace_s=0))
    stop.set()
    assert check.new_since() == []


def test_a_listening_port_is_named_until_it_is_closed() -> None:
    check = Leftovers()
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert any(f"port {server.getsockname()[1]}" in left for left in check.new_since(grace_s=0))
    assert check.new_since() == []


def test_a_child_is_named_until_it_was_waited_for() -> None:
    check = Leftovers()
    with subprocess.Popen(SLEEPER) as child:
        assert any(f"process {child.pid}" in left for left in check.new_since(grace_s=0))
        child.kill()
    assert check.new_since() == []


def test_a_detached_process_is_found_by_its_environment() -> None:
    session = f"other-{os.getpid()}"
    with subprocess.Popen(
        SLEEPER, start_new_session=True, env=os.environ | {SESSION_VARIABLE: session}
    ) as it:
        assert list(tagged_processes(session)) == [f"process {it.pid}"]
        it.kill()
    assert tagged_processes(session) == {}


def test_files_beyond_the_expected_are_named(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    assert files(tmp_path, ["ray"]) == {}
    (tmp_path / "stray").touch()
    assert list(files(tmp_path, ["ray"])) == [f"file {tmp_path / 'stray'}"]
