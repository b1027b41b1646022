"""A thread that flushes denormals to zero is refused before it computes anything."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from cluster.compute.threads import Workers, check_float_mode
from cluster.errors import MoemeshError
from kernels import maths

FLUSH_TO_ZERO = 0x8000
DEFAULT = 0x1F80


@intrinsic
def load_mxcsr(typing, word):  # type: ignore[no-untyped-def]
    def generate(context, builder, signature, args):  # type: ignore[no-untyped-def]
        place = cgutils.alloca_once_value(builder, args[0])
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse.ldmxcsr")
        builder.call(function, [builder.bitcast(place, pointer)])
        return context.get_dummy_value()

    return types.void(types.int32), generate


@njit
def set_mxcsr(word):  # type: ignore[no-untyped-def]
    load_mxcsr(np.int32(word))


@contextmanager
def flushing() -> Iterator[None]:
    """What a library built with -ffast-math does to the thread that loads it."""
    set_mxcsr(DEFAULT | FLUSH_TO_ZERO)
    try:
        yield
    finally:
        set_mxcsr(DEFAULT)


pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="MXCSR is x86's")


def test_a_sound_thread_passes() -> None:
    check_float_mode()
    assert maths.keeps_denormals(np.float32(2.0**-126))


def test_a_flushing_thread_is_refused() -> None:
    with flushing():
        kept = maths.keeps_denormals(np.float32(2.0**-126))
        with pytest.raises(MoemeshError, match="denormal"):
            Workers(1)
    assert not kept
