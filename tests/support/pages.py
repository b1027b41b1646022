"""Code on the documentation's pages, as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()


def block(label: str) -> str:
    """Of docs/clients.md."""
    (code,) = re.findall(rf"^```{label}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(code)


def shell(command: list[str], folder: Path) -> str:
    """What a command prints that must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr[-3000:]}"
    return done.stdout


def generate_stubs(python: Path, folder: Path) -> None:
    """As the page says it for Python."""
    shutil.copytree(ROOT / "protos", folder / "protos")
    (command,) = re.findall(r"^python (-m grpc_tools\.protoc .*)$", PAGE, re.MULTILINE)
    shell([str(python), *command.split()], folder)
