"""The scripts of tests/clients, each run by the interpreter of an environment of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1] / "clients"


def run(python: Path, script: str, *arguments: str) -> Any:
    """What it prints, a JSON value."""
    command = [str(python), str(SCRIPTS / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{script} {arguments} failed:\n{done.stderr[-3000:]}"
    return json.loads(done.stdout)
