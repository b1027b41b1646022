"""The roofline of this machine with the measured kernels under it, as one picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.errors import MoemeshError

if TYPE_CHECKING:
    from cluster.cli.kernelbench.run import Kernels

FORMATS = (".svg", ".png")


def check(path: Path) -> None:
    """Raises MoemeshError where no picture can be drawn to `path`: before minutes of measuring."""
    if path.suffix not in FORMATS:
        raise MoemeshError(f"{path} ends in neither {' nor '.join(FORMATS)}; name the plot accordingly")
    if not path.parent.is_dir():
        raise MoemeshError(f"there is no folder {path.parent} for the plot")
    if find_spec("matplotlib") is None:
        raise MoemeshError("--plot needs matplotlib; install it with: pip install 'moemesh[plot]'")
