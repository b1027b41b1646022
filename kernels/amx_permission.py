"""Asking Linux for the tile registers: eight kilobytes of state that a process may use only once granted."""

from __future__ import annotations

import ctypes
import platform
import sys

_SYS_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


def request() -> bool:
    """Whether this process, all its threads and what it forks may use AMX tiles from now on.

    It has to be asked for in every process after exec, before the first tile instruction: without it that
    is an illegal one. Kernels before 5.16, other systems, a seccomp filter or signal stacks too small for
    the larger state refuse.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    syscall = ctypes.CDLL(None).syscall
    syscall.restype = ctypes.c_long
    arguments = [ctypes.c_long(a) for a in (_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)]
    return bool(syscall(*arguments) == 0)
