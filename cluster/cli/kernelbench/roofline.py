"""The roofline of this machine with the measured kernels under it, as one picture."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

TERA, GIGA = 1e12, 1e9


def draw(kernels: Kernels, path: Path) -> None:
    """A panel for each number of threads: the roof, and every kernel that has an intensity under it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.2), layout="constrained")
    panels = figure.subplots(1, len(kernels.rates), sharey=True, squeeze=False)[0]
    for axes, threads in zip(panels, sorted(kernels.rates), strict=True):
        _roof(axes, kernels, threads)
        _points(axes, kernels, threads)
        axes.set_title(f"{threads} thread" + "s" * (threads > 1))
        axes.set_xlabel("operations for each byte of weights")
    panels[0].set_ylabel("10¹² operations a second (int8, a multiply-add is two)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _roof(axes: Any, kernels: Kernels, threads: int) -> None:
    rate, bandwidth = kernels.rates[threads], kernels.bandwidths[threads]
    ridge, low, high = rate / bandwidth, 1.5, 2000
    x = [low, ridge, high]
    axes.loglog(x, [low * bandwidth / TERA, rate / TERA, rate / TERA], color="0.25", lw=1.8, zorder=1)
    axes.fill_between(x, [low * bandwidth / TERA, rate / TERA, rate / TERA], 1e-3, color="0.95", zorder=0)
    axes.set_xlim(low, high)
    axes.set_ylim(0.015, 12)
    axes.text(high / 1.1, rate / TERA * 1.06, f"registers {rate / TERA:.2f}", ha="right", va="bottom")
    axes.text(
        low * 1.15,
        low * bandwidth / TERA * 1.5,
        f"memory {bandwidth / GIGA:.1f} GB/s",
        rotation=_angle(axes),
        rotation_mode="anchor",
        transform_rotates_text=True,
    )
    axes.grid(which="major", color="0.9", lw=0.6)


def _angle(axes: Any) -> float:
    """Degrees of a line of slope one in data: the picture's own, so it stays beside the roof."""
    return 45.0


def _points(axes: Any, kernels: Kernels, threads: int) -> None:
    """A marker a kernel; rows are written at the points of OLMoE's experts: the same columns hold for all."""
    series: dict[str, list[Point]] = {}
    for point in kernels.points:
        if point.threads == threads:
            series.setdefault(point.series, []).append(point)
    for name, points in series.items():
        colour = next(c for start, c in COLOURS.items() if name.startswith(start))
        marker = next(m for end, m in MARKERS.items() if name.endswith(end))
        x, y = [p.intensity for p in points], [p.rate / TERA for p in points]
        axes.loglog(x, y, marker, color=colour, label=name, ms=7, mec="white", mew=0.6, alpha=0.9)
        if name.endswith("olmoe"):
            below = name.startswith("int8")
            for point in points:
                place = (point.intensity, point.rate / TERA)
                offset, side = ((6, -3), "left") if below else ((-6, 2), "right")
                axes.annotate(
                    point.label, place, offset, textcoords="offset points", ha=side, fontsize=8, color=colour
                )
