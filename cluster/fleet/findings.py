"""What `moemesh doctor` has to say: about this machine, and about a fleet's hosts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """About this machine. values: what the text says, for --json. good: None where nothing is right or wrong;
    fix: what to do, "" where there is nothing; without a verdict it is advice."""

    name: str
    text: str
    values: Any
    good: bool | None = None
    fix: str = ""


@dataclass(frozen=True)
class Advice:
    """About a host of a fleet, or links between hosts; otherwise as Finding."""

    host: str
    name: str
    text: str
    good: bool | None = None
    fix: str = ""
