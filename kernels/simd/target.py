"""The operations whose instructions differ by CPU, chosen once a process."""

from kernels.jit import ISA

if ISA in ("amx", "avx512vnni"):
    from kernels.simd.x86 import dot_u8s8
else:
    from kernels.simd.portable import dot_u8s8

__all__ = ["dot_u8s8"]
