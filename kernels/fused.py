# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Several kernels that work row by row in one call: what they compute is written where each is defined.

In a decode step a row's kernels take microseconds each, and so does calling one from Python.
"""

from __future__ import annotations

from kernels.gate import gate_logits, gate_topk
from kernels.jit import F32, F32_1, F32_1R, F32_2, F32_2R, F32_3R, I8_2, I32_2, INT, U8_1, VOID, kernel
from kernels.norm import rms_norm
from kernels.quantise import quantise_rows

_NORMED = (F32_2R, F32_1R, F32, INT, F32_2, U8_1, I8_2, F32_1, I32_2)


@kernel(VOID(*_NORMED, INT, INT))
def norm_rows(x, weight, eps, width, out, finite, q, scale, sums, begin, end):
    """`rms_norm` of x, and its result quantised to one int8 plane by `quantise_rows`."""
    rms_norm(x, weight, eps, width, out, finite, begin, end)
    quantise_rows(out, q, scale, sums, begin, end)


@kernel(VOID(*_NORMED, F32_3R, INT, INT, INT, F32_2, I32_2, F32_2, INT, INT))
def gate_rows(
    x, weight, eps, width, out, finite, q, scale, sums, gate, experts, k, renormalise, logits, ids, weights,
    begin, end,
):  # fmt: skip
    """`norm_rows`, then `gate_logits` and `gate_topk` of the normed rows."""
    rms_norm(x, weight, eps, width, out, finite, begin, end)
    quantise_rows(out, q, scale, sums, begin, end)
    gate_logits(out, gate, logits, begin, end)
    gate_topk(logits, experts, k, renormalise, ids, weights, begin, end)
