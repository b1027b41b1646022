"""The one place that owns numba options, the instruction set and the compiled-kernel cache.

`kernel(...)` marks a compiled entry point with its exact signatures, `inline` a helper that disappears
into its caller. `compile_all()` compiles (or loads) every entry point and then closes the dispatchers,
so that nothing is ever compiled while a node serves: a compilation of seconds holding the interpreter
lock looks like a dead node.

The cache folder is named by a digest of every source file of this package, the versions of numba and
llvmlite, the CPU and the instruction set: a stale kernel cannot be found.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding
import numba
from numba import njit, types

ISA_VARIABLE = "MOEMESH_ISA"
CACHE_VARIABLE = "MOEMESH_CACHE_DIR"

ISAS = ("avx512vnni", "portable")
_REQUIRED = {"avx512vnni": ("avx512f", "avx512bw", "avx512vl", "avx512vnni")}


def supported_isas() -> tuple[str, ...]:
    """Instruction sets that code compiled in this process may use, best first; "portable" is always last."""
    if numba.config.CPU_FEATURES is not None:  # somebody chose a CPU for numba: believe them, not the host
        enabled = {f[1:] for f in numba.config.CPU_FEATURES.split(",") if f.startswith("+")}
    else:
        enabled = {name for name, on in llvmlite.binding.get_host_cpu_features().items() if on}
    return tuple(isa for isa in ISAS if all(f in enabled for f in _REQUIRED.get(isa, ())))


def choose_isa() -> str:
    """The instruction set of this process: $MOEMESH_ISA if the CPU has it, else the best it has.

    Raises ValueError for a name that does not exist. A known set that this CPU lacks falls back to the
    next best: never an illegal instruction.
    """
    wanted = os.environ.get(ISA_VARIABLE, "")
    available = supported_isas()
    if not wanted:
        return available[0]
    if wanted not in ISAS:
        raise ValueError(f"{ISA_VARIABLE}={wanted!r} is not one of {', '.join(ISAS)}")
    return wanted if wanted in available else available[0]


ISA = choose_isa()


def source_digest() -> str:
    """Hex digest of everything that decides what the compiled code does."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    cpu = numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name()
    parts = (numba.__version__, llvmlite.__version__, sys.version, cpu, str(numba.config.CPU_FEATURES), ISA)
    digest.update("\0".join(parts).encode())
    return digest.hexdigest()[:16]


def cache_dir() -> Path:
    """Where compiled kernels of exactly this source, compiler, CPU and instruction set live."""
    base = os.environ.get(CACHE_VARIABLE) or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "moemesh"
    )
    return Path(base) / "kernels" / f"{platform.machine()}-{ISA}-{source_digest()}"


numba.config.CACHE_DIR = str(cache_dir())

_REGISTRY: list[tuple[Any, tuple[Any, ...]]] = []


def kernel(*signatures: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compiled entry point, callable from Python without the interpreter lock, for exactly these signatures.

    Arrays in a signature come from the shorthands below; an input declared read-only also accepts a
    writable array.
    """

    def wrap(function: Callable[..., Any]) -> Any:
        dispatcher = njit(nogil=True, cache=True, error_model="numpy")(function)
        _REGISTRY.append((dispatcher, signatures))
        return dispatcher

    return wrap


inline = njit(forceinline=True, error_model="numpy")
"""A helper compiled into its callers; may take and return SIMD values."""

expand = njit(inline="always", error_model="numpy")
"""As `inline`, but written into its caller before types are inferred, never compiled by itself.

For large helpers with one caller: nested `inline` ones are optimised once more at every level."""


def entry_points() -> list[str]:
    return [dispatcher.__name__ for dispatcher, _ in _REGISTRY]


def compile_all(progress: Callable[[int, int, str], None] | None = None) -> int:
    """Compile or load every kernel, then refuse any further compilation in this process.

    progress(done, total, name) is called before each kernel. Returns the number that had to be
    compiled, 0 when the cache held them all.
    """
    missed = 0
    for number, (dispatcher, signatures) in enumerate(_REGISTRY):
        if progress:
            progress(number, len(_REGISTRY), dispatcher.__name__)
        for signature in signatures:
            if signature.args not in dispatcher.overloads:
                dispatcher.compile(signature)
        missed += sum(dispatcher.stats.cache_misses.values())
        dispatcher.disable_compile()
    return missed


def array(dtype: Any, ndim: int, readonly: bool = False) -> Any:
    """C-contiguous array type of a signature."""
    return types.Array(dtype, ndim, "C", readonly=readonly)


# Shorthands for signatures: element type, dimensions, "r" = read-only input.
BYTES = array(types.uint8, 1, readonly=True)
U8_1, U8_1R = array(types.uint8, 1), array(types.uint8, 1, True)
I8_2, I8_2R = array(types.int8, 2), array(types.int8, 2, True)
U16_1R, U16_2, U16_2R = array(types.uint16, 1, True), array(types.uint16, 2), array(types.uint16, 2, True)
I32_1, I32_1R = array(types.int32, 1), array(types.int32, 1, True)
I32_2, I32_2R = array(types.int32, 2), array(types.int32, 2, True)
I64_1, I64_1R = array(types.int64, 1), array(types.int64, 1, True)
U64_1R = array(types.uint64, 1, True)
F32_1, F32_1R = array(types.float32, 1), array(types.float32, 1, True)
F32_2, F32_2R = array(types.float32, 2), array(types.float32, 2, True)
F32_3, F32_3R = array(types.float32, 3), array(types.float32, 3, True)
F32_4, F32_4R = array(types.float32, 4), array(types.float32, 4, True)
F32_5, F32_5R = array(types.float32, 5), array(types.float32, 5, True)
U16_4, U16_4R = array(types.uint16, 4), array(types.uint16, 4, True)
U16_5, U16_5R = array(types.uint16, 5), array(types.uint16, 5, True)
INT = types.int64
F32 = types.float32
BOOL = types.boolean
VOID = types.void
