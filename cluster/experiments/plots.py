"""Pictures of a sweep. Every picture has one policy in one colour, the same in all of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import polars as pl
from matplotlib.ticker import MaxNLocator

from cluster.experiments.statistics import Estimate, pareto

PALETTE = ("#2a78d6", "#eb6834", "#1baf7a", "#eda100", "#e87ba4", "#008300", "#4a3aa7", "#e34948")
INK, MUTED, GRID = "#0b0b0b", "#52514e", "#e4e3df"
MARKERS = "osD^vPXp"
SMOOTH = 9
"""Steps over which a time series is averaged."""

Cells = dict[tuple[str, str, str], dict[str, Estimate]]

STYLE = {
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "savefig.dpi": 130,
}


def colours(policies: list[str]) -> dict[str, str]:
    """The first eight policies have colours of their own; later ones repeat them with other markers."""
    return {policy: PALETTE[index % len(PALETTE)] for index, policy in enumerate(policies)}


def draw_all(cells: Cells, steps: dict[tuple[str, str, str], pl.DataFrame], out: Path) -> dict[str, Path]:
    """Write every picture that the results have something for; title to file."""
    policies = list(dict.fromkeys(key[2] for key in cells))
    made: dict[str, tuple[str, Callable[[], Any]]] = {
        "Balancedness and throughput": ("throughput.png", lambda: _dots(cells, policies, RATES)),
        "Step time": ("latency.png", lambda: _dots(cells, policies, TIMES)),
        "What it costs and what it buys": ("pareto.png", lambda: _fronts(cells, policies)),
        "Balancedness over the run": ("timeline.png", lambda: _timeline(steps, policies)),
    }
    with plt.rc_context(STYLE):
        for name, draw in made.values():
            figure = draw()
            figure.savefig(out / name, bbox_inches="tight", facecolor="white")
            plt.close(figure)
    return {title: out / name for title, (name, _) in made.items()}


CAPTIONS = {
    "Balancedness and throughput": "Mean over seeds and its interval. Axes do not begin at 0.",
    "Step time": "Mean over seeds and its interval. Axes do not begin at 0.",
    "What it costs and what it buys": "On the dashed front is what no other exact policy beats in both. "
    "Hollow: the gate's choices are changed, so that something else is computed.",
    "Balancedness over the run": f"Mean over seeds, averaged over {SMOOTH} steps.",
}

RATES = (("balancedness", "balancedness (1 is perfect)"), ("tokens_per_s", "tokens a second"))
TIMES = (("p50_ms", "median step, ms"), ("p99_ms", "99th percentile of steps, ms"))


def _dots(cells: Cells, policies: list[str], figures: tuple[tuple[str, str], ...]) -> Any:
    """A panel for each (trace, fleet) and figure; a dot with its interval for each policy, so that the axis
    need not begin at 0."""
    places = _places(cells)
    colour = colours(policies)
    figure, axes = plt.subplots(
        len(places),
        len(figures),
        figsize=(9, 0.9 + len(places) * (0.55 + 0.24 * len(policies))),
        squeeze=False,
        layout="constrained",
    )
    for row, place in enumerate(places):
        for column, (name, label) in enumerate(figures):
            axis = axes[row, column]
            shown = [policy for policy in policies if (*place, policy) in cells]
            for height, policy in enumerate(shown):
                found = cells[*place, policy][name]
                error = [[found.mean - found.low], [found.high - found.mean]]
                axis.errorbar(
                    found.mean, -height, xerr=error, fmt="o", color=colour[policy], markersize=6, capsize=3
                )
                axis.annotate(
                    f"{found.mean:.4g}", (found.high, -height), (7, 0), textcoords="offset points",
                    va="center", fontsize=8, color=MUTED,
                )  # fmt: skip
            axis.set_yticks(
                [-height for height in range(len(shown))], shown if column == 0 else [""] * len(shown)
            )
            axis.set_ylim(-len(shown) + 0.4, 0.6)
            axis.margins(x=0.18)
            axis.grid(axis="y", visible=False)
            axis.xaxis.set_major_locator(MaxNLocator(5))
            axis.set_xlabel(label)
            if column == 0:
                axis.set_title(" · ".join(place))
    return figure


FRONTS = (
    ("moved_bytes", 1e-9, "GB moved", "balancedness", "balancedness"),
    ("p99_ms", 1.0, "99th percentile of steps, ms", "tokens_per_s", "tokens a second"),
)
"""(cost, its unit, its label, value, its label)."""


def _fronts(cells: Cells, policies: list[str]) -> Any:
    """Costs that some policy has against what they buy. The dashed front is what no other exact policy beats
    in both; hollow marks leave out or replace choices of the gate, so they compute something else."""
    places = _places(cells)
    fronts = [front for front in FRONTS if any(found[front[0]].mean for found in cells.values())]
    size = (1 + 4.5 * len(fronts), 3.1 * len(places) + 0.6)
    figure, axes = plt.subplots(len(places), len(fronts), figsize=size, squeeze=False, layout="constrained")
    for place, row in zip(places, axes, strict=True):
        for axis, front in zip(row, fronts, strict=True):
            _front(axis, {p: cells[*place, p] for p in policies if (*place, p) in cells}, policies, front)
        row[0].set_title(" · ".join(place))
    _legend(figure, axes[0, 0])
    return figure


def _front(
    axis: Any,
    found: dict[str, dict[str, Estimate]],
    policies: list[str],
    labels: tuple[str, float, str, str, str],
) -> None:
    cost_name, unit, cost_label, value_name, value_label = labels
    colour = colours(policies)
    cost = {policy: each[cost_name].mean * unit for policy, each in found.items()}
    value = {policy: each[value_name].mean for policy, each in found.items()}
    exact = [p for p, each in found.items() if not each["overflow"].mean and not each["changed"].mean]
    best = pareto(np.array([cost[p] for p in exact]), np.array([value[p] for p in exact]))
    line = sorted((cost[p], value[p]) for p, wins in zip(exact, best, strict=True) if wins)
    axis.plot(*zip(*line, strict=True), color=MUTED, linewidth=1, linestyle="--", zorder=1)
    for policy in found:
        axis.scatter(
            cost[policy], value[policy], s=50, label=policy, zorder=2, linewidths=1.5,
            marker=MARKERS[policies.index(policy) % len(MARKERS)], edgecolors=colour[policy],
            facecolors=colour[policy] if policy in exact else "white",
        )  # fmt: skip
    axis.set_xlabel(cost_label)
    axis.set_ylabel(value_label)
    axis.margins(0.12)
    if not any(cost.values()):
        axis.set_xticks([0])


def _legend(figure: Any, axis: Any) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)))


def _timeline(steps: dict[tuple[str, str, str], pl.DataFrame], policies: list[str]) -> Any:
    """Mean over seeds of the balancedness of each step, averaged over a few steps."""
    places = _places(steps)
    colour = colours(policies)
    figure, axes = plt.subplots(
        len(places), 1, figsize=(9, 2.3 * len(places) + 0.5), squeeze=False, layout="constrained"
    )
    for place, axis in zip(places, axes[:, 0], strict=True):
        for policy in policies:
            rows = steps.get((*place, policy))
            if rows is None:
                continue
            mean = rows.group_by("step").agg(pl.col("balancedness").mean()).sort("step")
            smooth = mean["balancedness"].rolling_mean(SMOOTH, min_samples=1, center=True)
            axis.plot(mean["step"], smooth, color=colour[policy], linewidth=1.6, label=policy)
        axis.set_title(" · ".join(place))
        axis.set_ylabel("balancedness")
    axes[-1, 0].set_xlabel("step")
    _legend(figure, axes[0, 0])
    return figure


def _places(cells: dict[tuple[str, str, str], Any]) -> list[tuple[str, str]]:
    """(trace, fleet) in order of appearance."""
    return list(dict.fromkeys((trace, fleet) for trace, fleet, _ in cells))
