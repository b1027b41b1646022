"""What quantisation costs, on text that the model was not trained on.

usage: python benchmarks/quality.py CHECKPOINT TEXTS [--window 512] [--json]

Packs the Hugging Face folder CHECKPOINT as int8, as int4, as int4 with an int4 trunk and as the bfloat16
reference, then scores every .txt file of the folder TEXTS with each, and with an int8 KV cache, as `moemesh
score FILE --model LIBRARY --reference REFERENCE` does. Figures are means over all tokens of all files; trunk
and experts are quantised.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.cli.quality import Quality, measure
from cluster.cli.report import NO_TARGET, Report, Result, Target, result
from cluster.config import EngineConfig, KvType
from cluster.library.bundled import open_model
from cluster.library.pack import pack


@dataclass(frozen=True)
class Case:
    """A way to quantise. increase: of perplexity, in percent; agreement: of the gates' top-k with bf16."""

    name: str
    experts: str
    trunk: str
    increase: Target = NO_TARGET
    agreement: Target = NO_TARGET
    kv: KvType = KvType.bf16


CASES = (
    Case("int8", "int8", "int8", Target(must=0.15, at_most=True), Target(must=0.99)),
    Case("int4", "int4", "int8", Target(must=0.40, at_most=True), Target(must=0.97)),
    Case("int4_trunk_int4", "int4", "int4"),
    Case("int8_kv_int8", "int8", "int8", kv=KvType.int8),
)
REFERENCE = "bf16"


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of int8 and int4 against bfloat16.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--window", type=int, default=512, help="tokens scored together")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    report = Report("full")
    with tempfile.TemporaryDirectory() as folder:
        pack(options.checkpoint, Path(folder) / REFERENCE, experts=(REFERENCE,))
        for case in CASES:
            pack(options.checkpoint, Path(folder) / case.name, experts=(case.experts,), trunk=case.trunk)
            report.results += quality(Path(folder), case, options.texts, options.window)
    report.show(options.json)


def quality(folder: Path, case: Case, texts: Path, window: int) -> list[Result]:
    library, oracle = str(folder / case.name), str(folder / REFERENCE)
    tokenizer = open_model(library).tokenizer()
    parts: list[Quality] = []
    for file in sorted(texts.glob("*.txt")):
        ids = tuple(tokenizer.encode(file.read_text()))
        sys.stderr.write(f"{case.name}: {file.name}, {len(ids)} tokens\n")
        parts.append(measure(library, "", ids, window, oracle, EngineConfig(kv=case.kv)))
    weights = [len(part.logprobs) for part in parts]

    def mean(values: list[float | None]) -> float:
        return float(np.average([value for value in values if value is not None], weights=weights))

    perplexity = math.exp(mean([math.log(part.perplexity) for part in parts]))
    reference = math.exp(mean([math.log(part.reference_perplexity or 1) for part in parts]))
    agreement = mean([part.agreement for part in parts])
    name = f"quality.{case.name}"
    return [
        result(f"{name}.perplexity", [perplexity], ""),
        result(f"{name}.reference_perplexity", [reference], ""),
        result(f"{name}.perplexity_increase", [100 * (perplexity / reference - 1)], "%", case.increase),
        result(f"{name}.kl", [mean([part.kl for part in parts])], "nats"),
        result(f"{name}.gate_topk_agreement", [agreement], "ratio", case.agreement),
    ]


if __name__ == "__main__":
    main()
