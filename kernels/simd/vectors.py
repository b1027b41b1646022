"""The two vector types of the SIMD layer, as numba types."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import models, register_model

LANES = 16

I8, I16, I32, I64 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
FLOAT = ir.FloatType()


def vector(element: ir.Type, lanes: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, lanes)


class Vector(types.Type):
    """A SIMD value: `lanes` elements of one LLVM type, living in registers."""

    def __init__(self, name: str, element: ir.Type, lanes: int) -> None:
        self.ir = vector(element, lanes)
        super().__init__(name=name)


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: object, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, fe_type.ir)


i32x16 = Vector("i32x16", I32, LANES)
"""Sixteen int32, or 64 bytes waiting for a byte dot product."""

f32x16 = Vector("f32x16", FLOAT, LANES)


def constant(vec: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vec, [value] * vec.count)
