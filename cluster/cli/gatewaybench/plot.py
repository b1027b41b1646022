"""One load as one picture: latencies and refusals over time, and the distribution of what was accepted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.cli.gatewaybench.figures import DONE, LOST, REFUSED, Fate, Outcome

COLOURS = {DONE: "#1f6f8b", REFUSED: "#c8553d", LOST: "#8e6fb0"}


def draw(outcomes: Mapping[str, Outcome], path: Path) -> None:
    """A row for each load. kernelbench's roofline.check says before whether a picture can be drawn."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6 * len(outcomes)), layout="constrained")
    rows = figure.subplots(len(outcomes), 2, squeeze=False)
    for (over_time, spread), (name, outcome) in zip(rows, outcomes.items(), strict=True):
        _over_time(over_time, name, outcome)
        _spread(spread, outcome)
    figure.savefig(path, dpi=150)


def _over_time(axes: Any, name: str, outcome: Outcome) -> None:
    start = min((one.at for one in outcome.fates), default=0.0)
    for fate, colour in COLOURS.items():
        some: list[Fate] = outcome.of(fate)
        if some:
            x, y = [one.at - start for one in some], [1e3 * one.end for one in some]
            axes.semilogy(x, y, ".", color=colour, ms=3, alpha=0.6, label=f"{len(some)} {fate}")
    axes.set_title(name, fontsize=11)
    axes.set_xlabel("s, when the request was to be sent")
    axes.set_ylabel("ms to its end")
    axes.legend(frameon=False, fontsize=9)


def _spread(axes: Any, outcome: Outcome) -> None:
    series = {
        "to the first token": outcome.first_tokens(),
        "between tokens": outcome.gaps(),
        "to the end": outcome.end_to_end(),
    }
    for label, seconds in series.items():
        ordered = sorted(1e3 * value for value in seconds)
        shares = [(place + 1) / len(ordered) for place in range(len(ordered))]
        axes.semilogx(ordered, shares, label=label, lw=1.5)
    axes.set_xlabel("ms")
    axes.set_ylabel("share of requests, or of gaps")
    axes.grid(which="major", color="0.88", lw=0.6)
    axes.legend(frameon=False, fontsize=9)
