"""moemesh and llama.cpp side by side: OLMoE's shapes, four layers of random weights, one process each.

usage: python benchmarks/llama_cpp.py --llama PYTHON --models FOLDER --library LIB
                                      [--int4-trunk LIB] [--threads 2] [--runs 5] [--json]

LIB is packed from the checkpoint that benchmarks/olmoe_checkpoint.py writes:

    python benchmarks/olmoe_checkpoint.py CHECKPOINT
    moemesh pack CHECKPOINT LIB --experts int8,int4

and the library of --int4-trunk the same with `--experts int4 --trunk int4`. PYTHON has llama-cpp-python, gguf
and numpy; FOLDER keeps the two GGUF files (2.9 GB) that are written at the first run. The best build for an
AVX-512 machine (its AMX build may end with an illegal instruction) is made by

    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON
      -DGGML_AVX_VNNI=ON -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
      pip install llama-cpp-python gguf

Every run of ours is followed by the same of theirs, and their ratio is taken. Ours samples each token, theirs
does not. All weights are quantised on both sides.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from worker import worker

from cluster.cli.bench_engine import PREFILL_TOKENS, decode, prefill_seconds
from cluster.cli.local import local_engine
from cluster.cli.report import Report, Result, Target, result
from cluster.config import EngineConfig, MiB
from cluster.router.engine import Engine

DECODE_TOKENS = 64
KV_BYTES = 256 * MiB
SCRIPT = str(Path(__file__).with_name("llama_worker.py"))


@dataclass(frozen=True)
class Comparison:
    """id: of the results; variant of our experts; kind of their file; targets of the two ratios."""

    id: str
    variant: str
    kind: str
    decode: Target
    prefill: Target


def over(must: float, aim: float, kind: str) -> Target:
    return Target(must, aim, reference=f"llama.cpp {kind}, measured in turn")


PREFILL_OVER = {kind: over(6, 12, kind) for kind in ("q8_0", "q4_0")}
COMPARISONS = (
    Comparison("int8", "int8", "q8_0", over(1.5, 2, "q8_0"), PREFILL_OVER["q8_0"]),
    Comparison("int4", "int4", "q4_0", over(1.2, 1.6, "q4_0"), PREFILL_OVER["q4_0"]),
)
INT4_TRUNK = Comparison("int4_trunk4", "int4", "q4_0", over(1.4, 2, "q4_0"), PREFILL_OVER["q4_0"])


def compare(
    comparison: Comparison, library: str, options: argparse.Namespace, say: Callable[[str], None]
) -> list[Result]:
    """Tokens a second of both, and ours over theirs, of prefill and decode."""
    config = EngineConfig(kv_bytes=KV_BYTES, threads=options.threads)
    model = options.models / f"olmoe-4-layers-{comparison.kind}.gguf"
    with (
        worker(options.llama, SCRIPT, model, comparison.kind, options.threads) as theirs,
        local_engine(library, comparison.variant, config) as engine,
    ):
        say(f"llama.cpp {theirs.greeting}")
        results = []
        for verb, tokens, target, run in (
            ("decode", DECODE_TOKENS, comparison.decode, _decode_seconds),
            ("prefill", PREFILL_TOKENS, comparison.prefill, prefill_seconds),
        ):
            run(engine)
            theirs.seconds(verb, tokens)
            pairs = []
            for number in range(options.runs):
                say(f"{comparison.id}, {verb}, run {number + 1} of {options.runs}")
                pairs.append((tokens / run(engine), tokens / theirs.seconds(verb, tokens)))
            name = f"llama_cpp.{comparison.id}.{verb}"
            results += [
                result(f"{name}.ratio", [a / b for a, b in pairs], "ratio", target),
                result(f"{name}.ours", [a for a, _ in pairs], "tokens/s"),
                result(f"{name}.theirs", [b for _, b in pairs], "tokens/s"),
            ]
    return results


def _decode_seconds(engine: Engine) -> float:
    return decode(engine, sequences=1, tokens=DECODE_TOKENS).seconds


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--llama", required=True, help="Python that has llama-cpp-python and gguf")
    parser.add_argument("--models", required=True, type=Path, help="folder of the GGUF files")
    parser.add_argument("--library", help="library with variants int8 and int4 and an int8 trunk")
    parser.add_argument("--int4-trunk", help="library with variant int4 and an int4 trunk")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    report, say = Report("full"), lambda text: print(text, file=sys.stderr, flush=True)
    if options.library:
        for comparison in COMPARISONS:
            report.results += compare(comparison, options.library, options, say)
    if options.int4_trunk:
        report.results += compare(INT4_TRUNK, options.int4_trunk, options, say)
    report.show(options.json)


if __name__ == "__main__":
    main()
