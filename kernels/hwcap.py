"""Features of an ARM CPU as the Linux kernel tells them: LLVM's list for the host leaves some out."""

from __future__ import annotations

import ctypes
import platform
import sys

_AT_HWCAP, _AT_HWCAP2 = 16, 26
_BITS = (("neon", _AT_HWCAP, 1), ("dotprod", _AT_HWCAP, 20), ("i8mm", _AT_HWCAP2, 13))
"""LLVM's name, entry of the auxiliary vector, bit (arch/arm64/include/uapi/asm/hwcap.h)."""


def arm_features() -> frozenset[str]:
    """LLVM's names of the features that the kernels use; empty on anything but 64-bit ARM under Linux."""
    if sys.platform != "linux" or platform.machine() != "aarch64":
        return frozenset()
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return frozenset(name for name, entry, bit in _BITS if getauxval(entry) >> bit & 1)
