"""What `moemesh bench gateway` can measure."""

from __future__ import annotations

from enum import StrEnum


class Part(StrEnum):
    overhead = "overhead"
    idle = "idle"
    score = "score"
    overload = "overload"
    load = "load"


STANDARD = (Part.overhead, Part.idle, Part.score, Part.overload)
