"""Pictures of several runs on one page: curves, the rate–distortion plane, strips of images."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vae_jax.report import pictures, words
from vae_jax.report.panels import CURVES
from vae_jax.report.pictures import CLASS_COLOURS, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from ml_collections import ConfigDict

LINES = ("-", "--", ":", "-.")  # the second ten columns have the second one
RATE = "kl_nats"
DISTORTION = "reconstruction_nats"


class Entry(NamedTuple):
    """One run: its folder, its name on the page, and what its files hold."""

    folder: str
    name: str
    config: ConfigDict
    metrics: Mapping[str, Any]  # {}: not evaluated yet
    history: Sequence[Mapping[str, Any]]


class Column(NamedTuple):
    """Runs that are shown as one: seeds of one setting."""

    name: str
    entries: tuple[Entry, ...]


class Strip(NamedTuple):
    """Images of one run in [0, 1]."""

    name: str  # of its column
    run: str
    step: int
    reconstructions: np.ndarray  # NxHxWxC, of the originals
    samples: np.ndarray  # NxHxWxC


class Strips(NamedTuple):
    """Images of several runs in [0, 1]."""

    originals: np.ndarray | None  # NxHxWxC; None where no run could be loaded
    rows: list[Strip]
    notes: list[str]


def _style(i: int) -> dict[str, Any]:
    """Colour and line of column i."""
    shape = LINES[i // len(CLASS_COLOURS) % len(LINES)]
    return {"color": CLASS_COLOURS[i % len(CLASS_COLOURS)], "linestyle": shape}


def separate(table: Sequence[Column]) -> list[Column]:
    """The columns without the last one where it holds the runs of all others again."""
    total = sum(len(column.entries) for column in table[:-1])
    if len(table) > 2 and len(table[-1].entries) == total == len(table) - 1:
        return list(table[:-1])
    return list(table)


def keys(table: Sequence[Column]) -> list[tuple[str, str]]:
    """(name, colour) of each column that curves and points are drawn of."""
    return [(column.name, _style(i)["color"]) for i, column in enumerate(separate(table))]


# --- curves --------------------------------------------------------------------------------------


def _series(entry: Entry, key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of a metric on the validation split."""
    steps = []
    values = []
    for row in entry.history:
        value = words.number(row.get(key))
        if row["split"] == "validation" and np.isfinite(value):
            steps.append(row["step"])
            values.append(value)
    return steps, values


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The y range without the worst start: the central 90 % and as much again on both sides."""
    low, a, b, high = np.quantile(values, (0, 0.05, 0.95, 1))
    if len(values) >= 10:
        low = max(low, a - (b - a))
        high = min(high, b + (b - a))
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _draw_curve(theme: Theme, table: Sequence[Column], key: str) -> Figure:
    from matplotlib import ticker

    figure = pictures.new_figure(4.0, 2.6)
    ax = figure.subplots()
    pictures.style_axes(ax, theme)
    drawn = []
    for i, column in enumerate(table):
        for entry in column.entries:
            steps, values = _series(entry, key)
            marker = "o" if len(steps) <= 20 else None
            ax.plot(steps, values, linewidth=1.3, marker=marker, markersize=2.5, **_style(i))
            drawn += values
    ax.set_ylim(_limits(np.array(drawn)))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.yaxis.set_major_formatter(ticker.ScalarFormatter(useOffset=False))
    if key == "accuracy":
        ax.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None))
    ax.set_xlabel("step", fontsize=8, color=theme["muted"], loc="right", labelpad=1)
    return figure


def curves(table: Sequence[Column]) -> list[dict[str, str]]:
    """A picture of each metric of validation: a line for each run, a colour for each column."""
    table = separate(table)
    result = []
    for key, (name, unit) in CURVES.items():
        lines = 0
        for column in table:
            for entry in column.entries:
                lines += bool(_series(entry, key)[0])
        if lines:
            draw = functools.partial(_draw_curve, table=table, key=key)
            alt = f"{name} of {lines} runs over the steps, on validation"
            result.append({"name": name, "unit": unit, "alt": alt} | pictures.recoloured(draw))
    return result


# --- rate and distortion -------------------------------------------------------------------------


def _points(column: Column) -> np.ndarray:
    """Nx2: rate and distortion of each run that has both."""
    points = []
    for entry in column.entries:
        point = (words.number(entry.metrics.get(RATE)), words.number(entry.metrics.get(DISTORTION)))
        if np.isfinite(point).all():
            points.append(point)
    return np.array(points).reshape(-1, 2)


def _draw_plane(theme: Theme, table: Sequence[Column], connected: bool) -> Figure:
    figure = pictures.new_figure(4.8, 3.6)
    ax = figure.subplots()
    pictures.style_axes(ax, theme)
    means = []
    for i, column in enumerate(table):
        points = _points(column)
        if len(points):
            ax.plot(*points.T, "o", markersize=6, color=_style(i)["color"])
            means.append(points.mean(0))
    if connected:
        order = np.array(sorted(map(tuple, means)))
        ax.plot(*order.T, color=theme["muted"], linewidth=0.8, zorder=1)
    ax.margins(0.12)
    _draw_elbos(ax, theme)
    ax.set_xlabel("rate: KL(q(z|x) ‖ p(z)), nats", fontsize=8.5, color=theme["muted"])
    ax.set_ylabel("distortion: −log p(x|z), nats", fontsize=8.5, color=theme["muted"])
    return figure


def _draw_elbos(ax: Axes, theme: Theme) -> None:
    """Dotted lines of equal ELBO: rate + distortion = −ELBO."""
    from matplotlib import ticker

    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    sums = ticker.MaxNLocator(7).tick_values(left + bottom, right + top)
    for total in sums:
        style = {"color": theme["muted"], "linewidth": 0.6, "linestyle": ":", "zorder": 0}
        ax.plot([left, right], [total - left, total - right], **style)
        x = min(right, total - bottom)  # where the line leaves the picture, below or at the right
        y = total - x
        if left < x and bottom <= y < top:
            text = words.minus(f"{-total:g}")
            place = {"ha": "right", "va": "bottom", "fontsize": 7, "color": theme["muted"]}
            ax.text(x, y, text, **place)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)


def plane(table: Sequence[Column], *, connected: bool) -> dict[str, str] | None:
    """The rate–distortion plane (Alemi et al. 2018, arXiv:1711.00464), a point for each run.

    None where fewer than two columns have both numbers, or the runs are on several data sets.

    Args:
      connected: draw a line from column to column, in the order of their rates.
    """
    table = separate(table)
    names = set()
    filled = 0
    for column in table:
        filled += len(_points(column)) > 0
        for entry in column.entries:
            names.add(entry.config.data.name)
    if len(names) > 1 or filled < 2:
        return None
    return pictures.recoloured(functools.partial(_draw_plane, table=table, connected=connected))


# --- images --------------------------------------------------------------------------------------


def _strip(image_NxHxWxC: np.ndarray) -> str:
    """A row of images as the address of a PNG."""
    return pictures.uri(pictures.png(pictures.grid([image_NxHxWxC], len(image_NxHxWxC))), "png")


def strips(images: Strips) -> dict[str, Any]:
    """What the template shows of :class:`Strips`."""
    rows = []
    for one in images.rows:
        about = f"step {one.step:,}"
        if one.run != one.name:
            about = f"{one.run}, {about}"
        row = {"name": one.name, "about": about}
        row |= {"reconstructions": _strip(one.reconstructions), "samples": _strip(one.samples)}
        rows.append(row)
    originals = ""
    if images.originals is not None:
        originals = _strip(images.originals)
    return {"originals": originals, "rows": rows, "notes": images.notes}
