"""Whether something keeps the system's clock right, as the kernel says: adjtimex(2), without rights."""

from __future__ import annotations

import ctypes

TIME_ERROR = 5
"""<sys/timex.h>: the clock is not synchronised."""

TIMEX_BYTES = 512
"""More than struct timex has anywhere; its first field, `modes`, is 0: change nothing."""


def synchronised() -> bool | None:
    """By NTP or PTP; None where this system does not tell."""
    try:
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(TIMEX_BYTES))
    except (OSError, AttributeError):  # no Linux
        return None
    return None if state < 0 else state != TIME_ERROR
