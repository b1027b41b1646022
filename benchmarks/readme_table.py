"""Write the README's table of results from the reports that `moemesh bench … --json` printed.

usage: moemesh bench cluster --preset full --json > cluster.json
       moemesh bench engine --json > engine.json
       python benchmarks/quality.py CHECKPOINT TEXTS --json > quality.json
       python benchmarks/readme_table.py cluster.json engine.json quality.json

The table stands between two marks in README.md; everything else stays as it is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- results: benchmarks/readme_table.py -->", "<!-- end of results -->"

ROWS = {
    "cluster.gateway.first_token_p50": "first token of a 64-token prompt through the gateway",
    "cluster.decode.tokens_per_s.streams1": "generation, 1 stream",
    "cluster.decode.tokens_per_s.streams8": "generation, 8 streams together",
    "cluster.decode.tokens_per_s.streams32": "generation, 32 streams together",
    "cluster.decode.ratio_streams32_to_1": "32 streams over one stream",
    "cluster.dispatch.roundtrip_p50": "dispatch of a row to three nodes and back, a layer",
    "cluster.dispatch.raw_p50": "the same bytes over plain sockets",
    "cluster.dispatch.ratio_to_raw": "dispatch over plain sockets",
    "engine.prefill.tokens_per_s.512": "one process: prompt of 512 tokens",
    "engine.decode.tokens_per_s.seqs1": "one process: generation, 1 sequence",
    "engine.decode.tokens_per_s.seqs32": "one process: generation, 32 sequences together",
    "quality.int8.perplexity_increase": "int8, all weights: perplexity over bfloat16, held-out text",
    "quality.int8.gate_topk_agreement": "int8: experts chosen as by bfloat16",
    "quality.int4.perplexity_increase": "int4 experts, int8 trunk: perplexity over bfloat16",
    "quality.int4.gate_topk_agreement": "int4: experts chosen as by bfloat16",
    "quality.int4_trunk_int4.perplexity_increase": "int4 experts and trunk: perplexity over bfloat16",
    "quality.int8_kv_int8.perplexity_increase": "int8 weights, int8 KV cache: perplexity over bfloat16",
}
"""Result id: what it says to a reader, in the order of the table."""


def table(reports: list[dict[str, Any]]) -> str:
    """Markdown. Raises KeyError for an id that no report has."""
    results = {r["id"]: r for report in reports for r in report["results"]}
    lines = ["| | median | spread | target |", "|---|---|---|---|"]
    for key, text in ROWS.items():
        r = results[key]
        low, high = r["spread"]
        spread = "" if low == high else f"{low:g} – {high:g}"
        lines.append(f"| {text} | **{r['value']:g} {r['unit']}** | {spread} | {target(r)} |")
    here = reports[0]["machine"]
    lines += [
        "",
        f"{here['cpu']}, {here['cores']} cores for everything (client, gateway, router, three nodes), "
        f"preset {reports[0]['preset']}, revision {reports[0]['git']}.",
    ]
    return "\n".join(lines)


def target(r: dict[str, Any]) -> str:
    if r["met"] is None:
        return ""
    at_most = r["met"] == (r["value"] <= r["must"])
    return f"{'≤' if at_most else '≥'} {r['must']:g}: {'met' if r['met'] else 'not met'}"


def main() -> None:
    reports = [json.loads(Path(name).read_text()) for name in sys.argv[1:]]
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{BEGIN}\n{table(reports)}\n{END}{after}")


if __name__ == "__main__":
    main()
