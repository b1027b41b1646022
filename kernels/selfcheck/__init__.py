"""The bits manifest: digests of what every kernel writes over fixed inputs, stored with the source.

The kernels of one numerics version give the same bits on every CPU and with every numba and LLVM. A digest
that differs from the stored one means that the compiler or the machine broke that promise; `python -m
kernels.selfcheck --write` stores new ones, which is right only together with a new numerics version or a
new case.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from kernels.selfcheck import attention_cases, balance_cases, permute_cases, wire_cases
from kernels.selfcheck.cases import CASES, Case
from kernels.selfcheck.draws import Draws

REGISTERED = (attention_cases, permute_cases, wire_cases, balance_cases)
"""Files beside cases.py that add to CASES when they are imported."""

MANIFEST = Path(__file__).with_name("bits.json")
SEED = 7


def digest(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 over types, shapes and bytes. Every NaN counts as the same one: CPUs differ in its sign."""
    result = hashlib.sha256()
    for array in arrays:
        if array.dtype.kind == "f":
            array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
        result.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    return result.hexdigest()


def digests(cases: Mapping[str, Case] = CASES) -> dict[str, str]:
    """Digest of what every case writes, each from the same seed."""
    return {name: digest(run(Draws(SEED))) for name, run in cases.items()}


def stored() -> dict[str, str]:
    """The manifest: digest by case."""
    found: dict[str, str] = json.loads(MANIFEST.read_text())
    return found


def wrong_bits() -> list[str]:
    """Kernels whose output in this process is not what the manifest says; empty is right."""
    expected = stored()
    return sorted(name for name, found in digests().items() if expected.get(name) != found)


def write() -> None:
    """Store what this process computes."""
    MANIFEST.write_text(json.dumps(digests(), indent=1) + "\n")
