"""Figures of the report: curves, latent map, rates, confusion, reliability, OOD scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vae_jax.report import pictures
from vae_jax.report.pictures import CLASS_COLOURS, LIGHT, MARKERS, TABLE_CLASSES, Theme, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = tuple[Sequence[float], Sequence[float]]  # x, y
Curves = Mapping[str, Curve]  # by label; over steps, by split
Bins = tuple[np.ndarray, np.ndarray, np.ndarray]  # n, accuracy, confidence of each bin

SCORES = {
    "elbo": "−ELBO",
    "iw": "−log p(x)",
    "typicality": "typicality",
    "regret": "likelihood regret",
    "complexity": "input complexity",
    "waic": "−WAIC",
    "latent": "latent distance",
}


class Lines(NamedTuple):
    """One axes of curves whose y are shares."""

    title: str
    x_name: str
    curves: Curves
    diagonal: bool = False


def _limits(values: np.ndarray) -> tuple[float, float]:
    """The y range. A start far off the rest would flatten the curve: it may leave the picture."""
    values = values[np.isfinite(values)]
    low = values.min()
    high = values.max()
    if len(values) >= 10:
        a, b = np.quantile(values, (0.05, 0.95))
        low = max(low, a - (b - a))
        high = min(high, b + (b - a))
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _label(ax: Axes, theme: Theme, x: str, y: str = "") -> None:
    ax.set_xlabel(literal(x), fontsize=8.5, color=theme["muted"])
    ax.set_ylabel(literal(y), fontsize=8.5, color=theme["muted"])


def _title(ax: Axes, theme: Theme, text: str) -> None:
    ax.set_title(literal(text), fontsize=9, color=theme["ink"], loc="left")


def _line_colour(theme: Theme, i: int) -> str:
    return (theme["train"], theme["validation"], *CLASS_COLOURS[3:])[i % 9]


def _marker(x: Sequence[float], most: int) -> str | None:
    """A dot on each point of a curve with few points."""
    return "o" if len(x) <= most else None


def draw_curve(ax: Axes, theme: Theme, key: str, series: Curves) -> None:
    """One metric over the steps, a line for each split."""
    from matplotlib import ticker

    pictures.style_axes(ax, theme)
    for split, (steps, values) in series.items():
        style = {"marker": _marker(steps, 40), "markersize": 2.6, "solid_capstyle": "round"}
        ax.plot(steps, values, color=theme.get(split, theme["muted"]), linewidth=1.5, **style)
    ax.set_ylim(_limits(np.concatenate([values for _, values in series.values()])))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.yaxis.set_major_locator(ticker.MaxNLocator(5))
    ax.yaxis.set_major_formatter(ticker.ScalarFormatter(useOffset=False))
    if key.endswith("accuracy"):
        ax.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None))
    ax.set_xlabel("step", fontsize=8, color=theme["muted"], loc="right", labelpad=1)


def draw_curves(curves: Mapping[str, Curves], titles: Mapping[str, str]) -> Figure:
    """Every curve in one figure, each with its title: ``curves.png``."""
    from matplotlib.lines import Line2D

    figure, axes = pictures.panels(len(curves), 4, 3, top=0.35, foot=0.3)
    splits = {}
    for ax, (key, series) in zip(axes, curves.items(), strict=True):
        draw_curve(ax, LIGHT, key, series)
        ax.set_title(literal(titles[key]), fontsize=10, color=LIGHT["ink"], loc="left")
        for split in series:
            splits[split] = Line2D([], [], color=LIGHT.get(split, LIGHT["muted"]))
    style = {"loc": "lower left", "ncols": len(splits), "frameon": False, "fontsize": 9}
    pictures.legend(figure, list(splits), list(splits.values()), **style)
    return figure


def plane(latents_PxD: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    """(points Px2, axis names): 2-D latents as they are, more by PCA, one against its rank."""
    z = np.nan_to_num(np.asarray(latents_PxD, np.float64))
    if z.shape[1] == 2:
        return z, ("z₁", "z₂")
    if z.shape[1] == 1:
        return np.column_stack([z[:, 0], np.argsort(np.argsort(z[:, 0]))]), ("z", "rank")
    z = z - z.mean(0)
    _, scale, axes = np.linalg.svd(z, full_matrices=False)
    share = scale**2 / max((scale**2).sum(), 1e-30)
    largest = np.abs(axes).argmax(1)
    axes *= np.sign(axes[np.arange(len(axes)), largest])[:, None]  # a fixed sign: no flips
    first = f"PC 1 ({share[0]:.0%} of the variance)"
    second = f"PC 2 ({share[1]:.0%} of the variance)"
    return z @ axes[:2].T, (first, second)


def draw_latents(
    theme: Theme,
    latents_PxD: np.ndarray,
    labels_P: np.ndarray | None,
    classes: Sequence[str],
) -> Figure:
    """The latent plane, coloured by class; up to 20 classes have their names in it."""
    points, names = plane(latents_PxD)
    labels = np.full(len(points), -1)
    if labels_P is not None:
        labels = np.asarray(labels_P)
    present = np.unique(labels[labels >= 0]).tolist()
    named = present if len(present) <= TABLE_CLASSES else []
    figure = pictures.new_figure(4.6, 4.3 + 0.22 * -(-len(named) // 5))
    ax = figure.subplots()
    pictures.style_axes(ax, theme)
    ax.grid(axis="both", color=theme["line"], linewidth=0.6)
    size = float(np.clip(12000 / max(len(points), 1), 3, 22))
    common = {"s": size, "linewidths": 0, "alpha": 0.8, "rasterized": True}
    plain = "#88919c" if present else LIGHT["train"]  # on a light and on a dark page
    ax.scatter(*points[labels < 0].T, color=plain, **common)
    # Classes are drawn in eight turns over the data, so that none lies over all others.
    for rows in np.array_split(np.arange(len(points)), 8):
        for y in present:
            own = rows[labels[rows] == y]
            ax.scatter(*points[own].T, color=_class_colour(y), marker=_class_marker(y), **common)
    _name_classes(ax, theme, named, {y: points[labels == y] for y in named}, classes)
    low, high = np.quantile(points, (0.001, 0.999), axis=0)
    margin = 0.05 * (high - low) + 1e-6
    ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
    ax.set_ylim(low[1] - margin[1], high[1] + margin[1])
    _label(ax, theme, *names)
    return figure


def _name_classes(
    ax: Axes,
    theme: Theme,
    named: Sequence[int],
    points: Mapping[int, np.ndarray],
    classes: Sequence[str],
) -> None:
    """Names at the medians of the classes, and a legend of them below the axes."""
    from matplotlib import patheffects

    if not named:
        return
    artists = []
    names = []
    for y in named:
        name = pictures.class_name(classes, y)
        halo = patheffects.withStroke(linewidth=2.5, foreground=theme["surface"])
        style = {"fontsize": 9, "weight": "bold", "color": theme["ink"], "path_effects": [halo]}
        place = np.median(points[y], axis=0)
        ax.text(*place, literal(name), ha="center", va="center", **style)
        style = {"color": _class_colour(y), "marker": _class_marker(y), "s": 22, "linewidths": 0}
        artists.append(ax.scatter([], [], **style))
        names.append(name)
    style = {"frameon": False, "fontsize": 8, "labelcolor": theme["ink"], "handletextpad": 0.2}
    place = {"loc": "outside lower center", "ncols": 5, "columnspacing": 1.2}
    pictures.legend(ax.figure, names, artists, **place, **style)


def draw_rates(theme: Theme, kl_D: np.ndarray, axis: str) -> Figure:
    """Bars of KL in nats, one for each latent dimension or level."""
    figure = pictures.new_figure(9, 2.2)
    ax = figure.subplots()
    pictures.style_axes(ax, theme)
    ax.bar(np.arange(1, len(kl_D) + 1), kl_D, width=0.8, color=theme["train"])
    ax.set_xlim(0.4, max(len(kl_D), 12) + 0.6)  # two dimensions are two bars, not two walls
    _label(ax, theme, axis, "nats")
    return figure


def _draw_shares(ax: Axes, theme: Theme, lines: Lines) -> None:
    from matplotlib import ticker

    pictures.style_axes(ax, theme)
    if lines.diagonal:
        ax.plot([0, 1], [0, 1], color=theme["muted"], linewidth=0.8, linestyle=":")
    artists = []
    longest = 0
    for i, (x, y) in enumerate(lines.curves.values()):
        style = {"linewidth": 1.5, "marker": _marker(x, 20), "markersize": 3}
        artists += ax.plot(x, y, color=_line_colour(theme, i), **style)
        longest = max(longest, len(x))
    ax.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None))
    if longest > 20 or lines.diagonal:
        ax.xaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None))
    ax.set_ylim(0, 1.02)
    _title(ax, theme, lines.title)
    _label(ax, theme, lines.x_name)
    if len(artists) > 1:
        style = {"frameon": False, "fontsize": 8, "labelcolor": theme["ink"]}
        pictures.legend(ax, list(lines.curves), artists, loc="lower left", **style)


def draw_lines(theme: Theme, axes: Sequence[Lines]) -> Figure:
    """Curves of shares, up to two axes side by side."""
    columns = min(len(axes), 2)
    rows = -(-len(axes) // columns)
    figure = pictures.new_figure(4.6 * columns, 3.3 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, lines in zip(grid, axes, strict=False):
        _draw_shares(ax, theme, lines)
    return figure


def draw_reliability(theme: Theme, reliability: Mapping[str, Bins]) -> Figure:
    """Accuracy against confidence, and below it how many images each bin of confidence holds."""
    figure = pictures.new_figure(4.6, 4.4)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curves = {}
    largest = 1
    pictures.style_axes(below, theme)
    below.set_yscale("log")
    for i, (label, (n, accuracy, confidence)) in enumerate(reliability.items()):
        counts = np.asarray(n)
        filled = counts > 0
        curves[label] = (np.asarray(confidence)[filled], np.asarray(accuracy)[filled])
        edges = np.linspace(0, 1, len(counts) + 1)
        style = {"baseline": 0.5, "color": _line_colour(theme, i), "linewidth": 1.2}
        below.stairs(np.maximum(counts, 0.5), edges, **style)
        largest = max(largest, int(counts.max()))
    _draw_shares(above, theme, Lines("accuracy", "", curves, diagonal=True))
    below.set_ylim(0.5, 2 * largest)
    ticks = 10 ** np.arange(len(str(largest)))  # 1, 10, … up to the largest
    below.set_yticks(ticks, [f"{t:,}" for t in ticks])
    below.minorticks_off()
    _title(below, theme, "images")
    _label(below, theme, "confidence")
    return figure


def draw_ood(
    theme: Theme,
    name: str,
    auroc: Mapping[str, tuple[float, float, float]],
    scores: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> Figure:
    """AUROCs (value, low, high) of each score, beside histograms of scores (inside, outside)."""
    figure = pictures.new_figure(3.3 * (1 + len(scores)), 3.0)
    first, *rest = figure.subplots(1, 1 + len(scores), squeeze=False)[0]
    pictures.style_axes(first, theme)
    first.axvline(0.5, color=theme["muted"], linewidth=0.8, linestyle=":")
    for i, (value, low, high) in enumerate(auroc.values()):
        first.plot([low, high], [i, i], color=theme["train"], linewidth=1.5)
        first.plot([value], [i], "o", color=theme["train"], markersize=4)
        style = {"va": "bottom", "fontsize": 8, "color": theme["ink"]}
        if value < 0.8:
            first.text(value + 0.03, i - 0.08, f"{value:.3f}", ha="left", **style)
        else:
            first.text(value - 0.03, i - 0.08, f"{value:.3f}", ha="right", **style)
    first.set_yticks(range(len(auroc)), [literal(SCORES.get(score, score)) for score in auroc])
    first.set_ylim(len(auroc) - 0.4, -0.8)
    first.set_xlim(0, 1.02)
    _title(first, theme, f"AUROC against {name}")
    for ax, (score, (inside, outside)) in zip(rest, scores.items(), strict=True):
        _draw_histograms(ax, theme, {"test images": inside, name: outside})
        _title(ax, theme, SCORES.get(score, score))
    return figure


def _draw_histograms(ax: Axes, theme: Theme, values: Mapping[str, np.ndarray]) -> None:
    """Two histograms over each other; the highest 0.5 % are put into the last bin."""
    from matplotlib import ticker

    pictures.style_axes(ax, theme)
    low, high = np.quantile(np.concatenate([*values.values()]), (0, 0.995))
    bins = np.linspace(low, high, 50)
    artists = []
    for colour, value in zip(("train", "validation"), values.values(), strict=True):
        style = {"color": theme[colour], "alpha": 0.55, "density": True}
        artists.append(ax.hist(np.clip(value, low, high), bins, **style)[2])
    ax.set_yticks([])
    ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
    style = {"frameon": False, "fontsize": 8, "labelcolor": theme["ink"]}
    pictures.legend(ax, list(values), artists, **style)


def _class_colour(y: int) -> str:
    return CLASS_COLOURS[y % len(CLASS_COLOURS)]


def _class_marker(y: int) -> str:
    return MARKERS[y // len(CLASS_COLOURS) % len(MARKERS)]


def draw_confusion(theme: Theme, confusion_YxY: np.ndarray, classes: Sequence[str]) -> Figure:
    """The matrix as a picture; up to 20 classes have counts and names."""
    from matplotlib.colors import to_rgb

    y = len(confusion_YxY)
    size = min(max(3.2, 0.46 * y + 1.2), 9)
    figure = pictures.new_figure(size, size)
    ax = figure.subplots()
    pictures.style_axes(ax, theme)
    ax.grid(False)
    opacity = pictures.shade(confusion_YxY)
    right = np.eye(y, dtype=bool)[..., None]
    colour = np.where(right, to_rgb(theme["train"]), to_rgb(theme["validation"]))
    ax.imshow(np.concatenate([colour, opacity[..., None]], -1), interpolation="nearest")
    if y <= TABLE_CLASSES:
        for i, j in np.ndindex(y, y):
            ink = theme["ink"] if confusion_YxY[i, j] else theme["line"]
            if opacity[i, j] > 0.85:
                ink = theme["surface"]
            style = {"ha": "center", "va": "center", "fontsize": 8, "color": ink}
            ax.text(j, i, f"{confusion_YxY[i, j]:,}", **style)
        names = [literal(pictures.class_name(classes, i)) for i in range(y)]
        ax.set_xticks(range(y), names, rotation=90 if max(map(len, names)) > 3 else 0)
        ax.set_yticks(range(y), names)
    _label(ax, theme, "predicted", "true")
    return figure
