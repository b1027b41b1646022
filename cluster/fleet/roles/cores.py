"""How the processes of a cluster share one machine's cores.

Linux gives every session an equal part of each core, where no control group shares them (autogroups,
sched(7)), and nice counts within a session only. All processes of a Ray are one session: what computes would
use up the part of the gateway, which has little to do and must do it at once.
"""

from __future__ import annotations

import logging
import os
import random
import time
from pathlib import Path

log = logging.getLogger(__name__)

AUTOGROUP = Path("/proc/self/autogroup")
ATTEMPTS = 40
EVERY_S = 0.1
"""Linux takes one such order in a tenth of a second, of all that do not come from root."""


def give_way(nice: int) -> None:
    """The calling thread, and all that it starts from now on, leave the core to whoever is less nice (see
    nice(2)); call it before there are any. 0 changes nothing."""
    os.nice(nice)


def share(nice: int | None) -> None:
    """Before the calling process has threads of its own: it gives way, as one process and not as one of its
    cluster's. None: nothing changes, as where a machine is the cluster's own."""
    if nice is None:
        return
    give_way(nice)
    if not begin_session():
        log.info("no session of its own: it shares that of process %d", os.getsid(0))
    elif nice and not weigh(nice):
        log.info("its session counts as any other: %s cannot be written", AUTOGROUP)


def begin_session() -> bool:
    """Whether the calling process leads a session now; where it cannot, nothing changes.

    Ray's workers lead a process group, and setsid(2) refuses who does: the parent's group, if it is of the
    same session, takes us in before. The new group has the number of the old one, by which Ray ends what we
    leave.
    """
    if os.getsid(0) == os.getpid():
        return True
    try:
        os.setpgid(0, os.getpgid(os.getppid()))
        os.setsid()
    except OSError:  # the parent is gone, or in another session
        return False
    return True


def weigh(nice: int) -> bool:
    """Have all processes of this session together count as one of that niceness. False: Linux does not group
    them, or takes no such order."""
    for _ in range(ATTEMPTS):
        try:
            AUTOGROUP.write_text(str(nice))
            return True
        except BlockingIOError:
            time.sleep(random.uniform(0.5, 1.5) * EVERY_S)
        except OSError:
            return False
    return False
