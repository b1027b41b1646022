"""The roofline of this machine with the measured kernels under it, as one picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.cli.kernelbench.limits import GIGA, TERA
from cluster.errors import MoemeshError

if TYPE_CHECKING:
    from cluster.cli.kernelbench.cases import Point
    from cluster.cli.kernelbench.run import Kernels

FORMATS = (".svg", ".png")


def check(path: Path) -> None:
    """Raises MoemeshError where no picture can be drawn to `path`: before minutes of measuring."""
    if path.suffix not in FORMATS:
        raise MoemeshError(f"{path} ends in neither {' nor '.join(FORMATS)}; name the plot accordingly")
    if not path.parent.is_dir():
        raise MoemeshError(f"there is no folder {path.parent} for the plot")
    if find_spec("matplotlib") is None:
        raise MoemeshError("--plot needs matplotlib; install it with: pip install 'moemesh[plot]'")


COLOURS = {"int8 experts": "#1f6f8b", "int4 experts": "#c8553d", "int8": "#6aa84f", "int4": "#8e6fb0"}
"""By the beginning of a series' name, the longest first."""

MARKERS = {"olmoe": "o", "qwen3": "s", "mixtral": "^", "deepseek": "D", "projection": "P", "head": "X"}
"""By its end."""

X_RANGE = (1.5, 2000.0)
"""Operations a byte: one row of int8 is two, 256 rows of int4 a thousand."""


def draw(kernels: Kernels, path: Path) -> None:
    """A panel for each number of threads: the roof, and every kernel that has an intensity under it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.2), layout="constrained")
    panels = figure.subplots(1, len(kernels.rates), sharey=True, squeeze=False)[0]
    for axes, threads in zip(panels, sorted(kernels.rates), strict=True):
        points = [point for point in kernels.points if point.threads == threads]
        _roof(axes, threads, kernels.rates[threads], kernels.bandwidths[threads])
        _points(axes, points)
        _columns(axes, points, kernels.rates[threads], kernels.bandwidths[threads])
    rates = [point.rate for point in kernels.points]
    panels[0].set_ylim(0.6 * min(rates) / TERA, 2 * max(kernels.rates.values()) / TERA)
    panels[0].set_ylabel("10¹² int8 operations a second; a multiply-add is two")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _roof(axes: Any, threads: int, rate: float, bandwidth: float) -> None:
    low, high = X_RANGE
    x, y = [low, rate / bandwidth, high], [low * bandwidth / TERA, rate / TERA, rate / TERA]
    axes.loglog(x, y, color="0.25", lw=1.8, zorder=1)
    axes.fill_between(x, y, 1e-6, color="0.96", zorder=0)
    axes.set_xlim(low, high)
    axes.set_xlabel("operations for each byte of weights")
    limits = f"memory {bandwidth / GIGA:.1f} GB/s, registers {rate / TERA:.2f}·10¹²/s"
    axes.set_title(f"{threads} thread{'s' * (threads > 1)}: {limits}", fontsize=11)
    axes.grid(which="major", color="0.88", lw=0.6)


def _points(axes: Any, points: list[Point]) -> None:
    """A marker a kernel, one shape a model or matrix, one colour a kind."""
    series: dict[str, list[Point]] = {}
    for point in points:
        series.setdefault(point.series, []).append(point)
    for name, members in series.items():
        colour = _colour(name)
        marker = next(m for end, m in MARKERS.items() if name.endswith(end))
        x, y = [p.intensity for p in members], [p.rate / TERA for p in members]
        axes.loglog(x, y, marker, color=colour, label=name, ms=7.5, mec="white", mew=0.7, alpha=0.9)


def _columns(axes: Any, points: list[Point], rate: float, bandwidth: float) -> None:
    """Rows an expert, once for all models: int4 above the roof, int8 below the lowest marker."""
    columns: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        kind, is_experts, _ = point.series.partition(" experts")
        if is_experts:
            columns.setdefault((kind, point.label), []).append(point)
    for (kind, label), members in columns.items():
        x = members[0].intensity
        above = kind == "int4"
        y = min(rate, x * bandwidth) if above else min(point.rate for point in members)
        axes.annotate(
            label,
            (x, y / TERA),
            (0, 4 if above else -8),
            textcoords="offset points",
            ha="right" if above and x * bandwidth < rate else "center",
            va="bottom" if above else "top",
            fontsize=8.5,
            color=_colour(members[0].series),
        )


def _colour(series: str) -> str:
    return next(colour for start, colour in COLOURS.items() if series.startswith(start))
