"""The report of a sweep: one HTML page with everything in it, and the pictures beside it."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path

import polars as pl

from cluster.errors import InvalidRequest
from cluster.experiments import plots
from cluster.experiments.statistics import FIGURES, Estimate, summarise

TITLES = {
    "balancedness": "balancedness",
    "tokens_per_s": "tokens/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "moved_bytes": "moved MB",
    "hit_rate": "hit rate",
    "overflow": "overflow",
    "changed": "changed",
}
UNITS = {"moved_bytes": 1e-6}

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #0b0b0b; background: #fff; max-width: 70rem;
       margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.1rem; margin-top: 2rem }}
p, figcaption {{ color: #52514e }} figure {{ margin: 1rem 0 }} img {{ max-width: 100% }}
.wide {{ overflow-x: auto }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums }}
th, td {{ padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e3df }}
th {{ font-weight: 600 }} th:first-child, td:first-child {{ text-align: left }}
td small {{ color: #52514e }} code {{ font-size: .9em }}
</style>
<h1>{title}</h1>
<p>{runs} runs, {seeds} seeds each at most. Mean over seeds, in brackets its {level:.0%} bootstrap interval.
Balancedness is the fluid bound over the makespan of a step's rows, mean over layers: 1 if all devices end
together. Overflow and changed: part of the gate's choices that a baseline gate left out, or replaced.</p>
{tables}
{pictures}
<h2>Where it ran</h2>
<p>{provenance}</p>
</html>
"""


def write_report(folder: Path) -> list[Path]:
    """report.html and the PNGs from FOLDER/results.parquet; their paths, the page first.

    Raises InvalidRequest for a folder without results.
    """
    results = read_results(folder)
    cells = summarise(results)
    pictures = plots.draw_all(cells, _steps(results, folder), folder)
    tables = "\n".join(_tables(cells))
    images = "\n".join(_figure(title, path, plots.CAPTIONS[title]) for title, path in pictures.items())
    page = PAGE.format(
        title=html.escape(_title(folder)),
        runs=len(results),
        seeds=results["seed"].n_unique(),
        level=0.95,
        tables=tables,
        pictures=images,
        provenance=_provenance(results),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return [path, *pictures.values()]


def read_results(folder: Path) -> pl.DataFrame:
    path = folder / "results.parquet"
    try:
        results = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):
        raise InvalidRequest(
            f"{folder} has no results; run `moemesh experiment run SPEC --out {folder}`"
        ) from None
    if results.is_empty():
        raise InvalidRequest(f"{path} is empty: no run has finished")
    return results


def _steps(results: pl.DataFrame, folder: Path) -> dict[tuple[str, str, str], pl.DataFrame]:
    """(trace, fleet, policy): the steps of all seeds."""
    return {
        (str(key[0]), str(key[1]), str(key[2])): pl.concat(
            pl.read_parquet(folder / "runs" / f"{name}.parquet") for name in rows["id"]
        )
        for key, rows in results.group_by("trace", "fleet", "policy", maintain_order=True)
    }


def _title(folder: Path) -> str:
    try:
        return str(json.loads((folder / "experiment.json").read_text())["title"])
    except (OSError, ValueError, KeyError):
        return folder.name


def _tables(cells: plots.Cells) -> list[str]:
    """One table for each trace and fleet; columns that say nothing anywhere are left out."""
    shown = [
        name for name in FIGURES if any(found[name].samples and found[name].mean for found in cells.values())
    ]
    tables = []
    for place in dict.fromkeys((trace, fleet) for trace, fleet, _ in cells):
        head = "".join(f"<th>{TITLES[name]}</th>" for name in shown)
        body = "".join(
            f"<tr><td>{html.escape(policy)}</td>"
            + "".join(f"<td>{_cell(found[name], UNITS.get(name, 1))}</td>" for name in shown)
            + "</tr>"
            for (trace, fleet, policy), found in cells.items()
            if (trace, fleet) == place
        )
        title = html.escape(" · ".join(place))
        tables.append(
            f'<h2>{title}</h2><div class="wide"><table><tr><th>policy</th>{head}</tr>{body}</table></div>'
        )
    return tables


def _cell(found: Estimate, unit: float) -> str:
    if not found.samples:
        return "–"
    mean, low, high = (f"{value * unit:.4g}" for value in (found.mean, found.low, found.high))
    return mean if found.samples == 1 else f"{mean} <small>[{low}, {high}]</small>"


def _figure(title: str, path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(title)
    image = f'<img alt="{name}" src="data:image/png;base64,{data}">'
    return f"<figure><h2>{name}</h2>{image}<figcaption>{html.escape(caption)}</figcaption></figure>"


def _provenance(results: pl.DataFrame) -> str:
    machines = {json.loads(text)["cpu"] for text in results["machine"]}
    revisions = {str(revision) for revision in results["git"]}
    return html.escape(f"{', '.join(sorted(machines))}; source {', '.join(sorted(revisions))}")
