"""The one place that owns numba options, the instruction set and the compiled-kernel cache.

`kernel(...)` marks a compiled entry point with its exact signatures, `inline` a helper that disappears
into its caller. `compile_all()` compiles (or loads) every entry point and then closes the dispatchers,
so that nothing is ever compiled while a node serves: a compilation of seconds holding the interpreter
lock looks like a dead node.

The cache folder is named by a digest of every source file of this package, the versions of numba and
llvmlite, the CPU and the instruction set: a stale kernel cannot be found.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding
import numba
from numba import njit, types
from numba.extending import overload

from kernels import amx_permission, hwcap

ISA_VARIABLE = "MOEMESH_ISA"
CACHE_VARIABLE = "MOEMESH_CACHE_DIR"

ISAS = ("amx", "avx512vnni", "avxvnni", "avx2", "neon_i8mm", "neon_dotprod", "portable")
"""Best first; each is a file in kernels/simd."""

_AVX512_VNNI = ("avx512f", "avx512bw", "avx512vl", "avx512vnni")
_REQUIRED = {
    "amx": ("amx-tile", "amx-int8", *_AVX512_VNNI),
    "avx512vnni": _AVX512_VNNI,
    "avxvnni": ("avx2", "fma", "avxvnni"),
    "avx2": ("avx2", "fma"),
    "neon_i8mm": ("neon", "dotprod", "i8mm"),
    "neon_dotprod": ("neon", "dotprod"),
    "portable": (),
}

_PLAIN_CPU = {
    "avxvnni": "x86-64-v3",
    "avx2": "x86-64-v3",
    "neon_i8mm": "generic",
    "neon_dotprod": "generic",
    "portable": "generic",
}
"""LLVM's name of a CPU that has no wider registers than the set, where there are wider ones."""


def llvm_features() -> frozenset[str]:
    """What LLVM finds by itself."""
    return frozenset(name for name, on in llvmlite.binding.get_host_cpu_features().items() if on)


def host_features() -> frozenset[str]:
    """LLVM's names of what this CPU has, or of what somebody who chose a CPU for numba says it has."""
    if numba.config.CPU_FEATURES is not None:
        return frozenset(f[1:] for f in numba.config.CPU_FEATURES.split(",") if f.startswith("+"))
    return llvm_features() | hwcap.arm_features()


def missing_features(isa: str) -> tuple[str, ...]:
    """What this process lacks for an instruction set."""
    missing = tuple(feature for feature in _REQUIRED[isa] if feature not in HOST_FEATURES)
    if isa == "amx" and not missing and not amx_permission.request():
        return ("the system's permission to use tiles",)
    return missing


def supported_isas() -> tuple[str, ...]:
    """Instruction sets that code compiled in this process may use, best first; "portable" is always last."""
    return tuple(isa for isa in ISAS if not missing_features(isa))


def better_isas() -> dict[str, str]:
    """Instruction sets of this architecture that are better than the one in use, and why they are not."""
    arm = platform.machine() in ("aarch64", "arm64")
    reasons = {}
    for isa in ISAS[: ISAS.index(ISA)]:
        if isa.startswith("neon_") == arm:
            missing = ", ".join(missing_features(isa))
            reasons[isa] = f"this machine lacks {missing}" if missing else f"{ISA_VARIABLE} rules it out"
    return reasons


def choose_isa() -> str:
    """The instruction set of this process: the best this CPU has that is not better than $MOEMESH_ISA.

    Raises ValueError for a name that does not exist. A known set that this CPU lacks falls back to the
    next best: never an illegal instruction.
    """
    wanted = os.environ.get(ISA_VARIABLE) or ISAS[0]
    if wanted not in ISAS:
        raise ValueError(f"{ISA_VARIABLE}={wanted!r} is not one of {', '.join(ISAS)}")
    return next(isa for isa in ISAS[ISAS.index(wanted) :] if not missing_features(isa))


def aim_compiler(isa: str) -> None:
    """Let numba compile for the set that was chosen. Must run before numba compiles anything.

    A set below the best gets a CPU with no more than it, or LLVM would widen every other operation to the
    best. The best gets this CPU, with features that LLVM cannot see by itself added. Whoever chose a CPU
    for numba is left alone.
    """
    config = numba.config
    if config.CPU_NAME is not None or config.CPU_FEATURES is not None:
        return
    if isa != supported_isas()[0] and isa in _PLAIN_CPU:
        config.CPU_NAME = _PLAIN_CPU[isa]
        config.CPU_FEATURES = _feature_list(_REQUIRED[isa])
    elif llvm_features() != HOST_FEATURES:
        config.CPU_FEATURES = _feature_list(sorted(HOST_FEATURES))


def _feature_list(features: Iterable[str]) -> str:
    return ",".join(f"+{feature}" for feature in features)


HOST_FEATURES = host_features()
ISA = choose_isa()
aim_compiler(ISA)


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


# Only kernels are called from Python; making helpers callable took a third of all compile time. Calling one
# nevertheless ends the process: a test wraps it in a njit function of its own.
_INSIDE = {"error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

inline = njit(forceinline=True, **_INSIDE)
"""A helper compiled into its callers; may take and return SIMD values."""

part = njit(**_INSIDE)
"""A large loop that kernels call: compiled once into each kernel, however many places call it."""

splice = njit(inline="always", error_model="numpy")
"""A helper around parts: its source goes into the kernel's before anything is compiled."""


def by_type(choose: Callable[..., Any]) -> Callable[..., Any]:
    """A helper whose source depends on types: choose(types of the arguments) returns the function, of the
    same parameters, that is compiled into the caller."""

    @functools.wraps(choose)
    def helper(*_: Any) -> Any:
        raise TypeError(f"{choose.__name__} can be called from compiled code only")

    overload(helper, jit_options={"forceinline": True})(choose)
    return helper


probe = njit(nogil=True, cache=True, error_model="numpy")
"""A kernel that only measures: no part of serving, compiled at its first call instead of by compile_all."""


def entry_points() -> list[str]:
    return [dispatcher.__name__ for dispatcher, _ in _REGISTRY]


@dataclass(frozen=True)
class Warmth:
    """Kernel variants (a kernel for one set of argument types) that came from the cache, and that did not."""

    loaded: int
    compiled: int


def compile_all(progress: Callable[[int, int, str], None] | None = None) -> Warmth:
    """Compile or load every kernel, then refuse any further compilation in this process.

    progress(done, total, name) is called before each kernel. Returns what this process has loaded and
    compiled since it began.
    """
    loaded = compiled = 0
    for number, (dispatcher, signatures) in enumerate(_REGISTRY):
        if progress:
            progress(number, len(_REGISTRY), dispatcher.__name__)
        _compile(dispatcher, signatures)
        loaded += sum(dispatcher.stats.cache_hits.values())
        compiled += sum(dispatcher.stats.cache_misses.values())
        dispatcher.disable_compile()
    return Warmth(loaded, compiled)


def compile_one(name: str) -> None:
    """Compile or load the kernel called `name`. Raises KeyError if there is none."""
    kernels = {dispatcher.__name__: (dispatcher, signatures) for dispatcher, signatures in _REGISTRY}
    _compile(*kernels[name])


def _compile(dispatcher: Any, signatures: tuple[Any, ...]) -> None:
    for signature in signatures:
        if signature.args not in dispatcher.overloads:
            dispatcher.compile(signature.args)


def uncached() -> dict[str, int]:
    """Kernels that the cache lacks, and how many variants of each; compiles nothing."""
    missing = {
        dispatcher.__name__: sum(not _in_cache(dispatcher, signature) for signature in signatures)
        for dispatcher, signatures in _REGISTRY
    }
    return {name: count for name, count in missing.items() if count}


def cached() -> tuple[int, int]:
    """(variants that this process would find in the cache, all variants); compiles nothing."""
    total = sum(len(signatures) for _, signatures in _REGISTRY)
    return total - sum(uncached().values()), total


def _in_cache(dispatcher: Any, signature: Any) -> bool:
    """By numba's own lookup, since it alone knows what it takes for stale."""
    return dispatcher._cache.load_overload(signature.args, dispatcher.targetctx) is not None


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
I32_3R = array(types.int32, 3, True)
I64_2, I64_2R = array(types.int64, 2), array(types.int64, 2, True)
U64_1R = array(types.uint64, 1, True)
U8_2R = array(types.uint8, 2, True)
F32_1, F32_1R = array(types.float32, 1), array(types.float32, 1, True)
F32_2, F32_2R = array(types.float32, 2), array(types.float32, 2, True)
F32_3, F32_3R = array(types.float32, 3), array(types.float32, 3, True)
F32_4, F32_4R = array(types.float32, 4), array(types.float32, 4, True)
F32_5, F32_5R = array(types.float32, 5), array(types.float32, 5, True)
U16_4, U16_4R = array(types.uint16, 4), array(types.uint16, 4, True)
U16_5, U16_5R = array(types.uint16, 5), array(types.uint16, 5, True)
F64_1, F64_1R = array(types.float64, 1), array(types.float64, 1, True)
F64_2, F64_2R = array(types.float64, 2), array(types.float64, 2, True)
BOOL_2R, BOOL_3 = array(types.boolean, 2, True), array(types.boolean, 3)
INT = types.int64
NONE = types.none
F32 = types.float32
F64 = types.float64
U64 = types.uint64
BOOL = types.boolean
VOID = types.void
