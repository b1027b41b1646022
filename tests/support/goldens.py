"""Stored answers of transformers on the tiny checkpoints; made by tests/contract/make_goldens.py."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from support.reference_model import Array

FOLDER = Path(__file__).resolve().parents[1] / "data" / "goldens"
TOKENS = 80
GREEDY_PROMPT = 16
GREEDY_STEPS = 64


@dataclass(frozen=True)
class Golden:
    """Fields as in make_goldens; gates and greedy as lists would be compared."""

    ids: list[int]
    positions: npt.NDArray[np.int32]
    logits: npt.NDArray[np.float32]
    scale: float
    top_ids: npt.NDArray[np.int32]
    top_logits: npt.NDArray[np.float32]
    gates: npt.NDArray[np.int16]
    greedy: list[int]
    greedy_margin: float
    weights: int

    @property
    def greedy_prompt(self) -> list[int]:
        return self.ids[:GREEDY_PROMPT]

    def error_of(self, logits: Array) -> float:
        """max |difference| / max |logit| of `logits` [tokens, vocab], over all that is stored."""
        whole = np.abs(logits[self.positions] - self.logits).max()
        best = np.abs(np.take_along_axis(logits, self.top_ids, -1) - self.top_logits).max()
        return float(max(whole, best) / self.scale)


def golden(name: str) -> Golden:
    with np.load(golden_path(name)) as file:
        values: dict[str, Any] = dict(file)
    scalars = {name: value.item() for name, value in values.items() if value.ndim == 0}
    lists = {name: values[name].tolist() for name in ("ids", "greedy")}
    return Golden(**{**values, **scalars, **lists})


def golden_path(name: str) -> Path:
    return FOLDER / f"{name}.npz"


def weights_crc(checkpoint: Path) -> int:
    crc = 0
    for file in sorted(checkpoint.glob("*.safetensors")):
        crc = zlib.crc32(file.read_bytes(), crc)
    return crc
