"""Pictures: grids of images as PNG, figures as SVG for a light and for a dark page."""

import base64
import io
import os
import re

import numpy as np

from vae_jax.config import UserError
from vae_jax.train.log import replace

LIGHT = {
    "page": "#f6f7f9",
    "surface": "#ffffff",
    "ink": "#1a1d21",
    "muted": "#59626d",
    "line": "#dfe3e8",
    "train": "#2f62c9",
    "validation": "#c2570c",
}
DARK = {
    "page": "#101215",
    "surface": "#191c20",
    "ink": "#e9ebee",
    "muted": "#9ca6b2",
    "line": "#31363d",
    "train": "#84aaff",
    "validation": "#f7a35c",
}
# Ten colours kept apart for normal and colour-deficient sight: Petroff 2021 (arXiv:2107.02270).
# More classes take them again with another marker.
CLASS_COLOURS = (
    ("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6")
    + ("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd")
)  # fmt: skip
MARKERS = "o^sDvP*X"
TABLE_CLASSES = 20  # a larger confusion matrix is a picture without counts
TILE = 112  # pixels of a tile's longer side in a grid's file, about; the page shows half of it


def png(rgba_HxWx4):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgba_HxWx4).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def grid(stacks, columns):
    """RGBA bytes of images in rows; gaps are transparent, so the grid fits a light and a dark page.

    ``stacks`` are arrays [N, H, W, C] in [0, 1]. Image i of each is in column i mod columns; a row of
    the first stack is followed by the same images of the second. A pixel becomes a square block of
    whole pixels: nothing is smoothed. Three channels are RGB; any other number is averaged to grey.
    """
    stacks = [np.clip(np.nan_to_num(np.asarray(s, np.float32)), 0, 1) for s in stacks]
    n, height, width, channels = stacks[0].shape
    columns = min(columns, n)
    k = max(1, round(TILE / max(height, width)))
    gap, between = 8, 16 if len(stacks) > 1 else 0
    band = len(stacks) * (height * k + gap) + between  # one row of every stack
    bands = -(-n // columns)
    canvas = np.zeros((bands * band - gap - between, columns * (width * k + gap) - gap, 4), np.uint8)
    for s, images in enumerate(stacks):
        for i, image in enumerate(images):
            top = i // columns * band + s * (height * k + gap)
            left = i % columns * (width * k + gap)
            tile = canvas[top : top + height * k, left : left + width * k]
            rgb = image if channels == 3 else image.mean(-1, keepdims=True)
            tile[..., :3] = np.rint(255 * rgb).astype(np.uint8).repeat(k, 0).repeat(k, 1)
            tile[..., 3] = 255
    return canvas


def columns(n):
    """A width that fills the last row where one of the usual widths does."""
    return next((c for c in (8, 10, 9, 7, 6) if n % c == 0), 8)


def new_figure(width, height, layout="constrained"):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout, facecolor="none")


def panels(n, width, height, top, foot=0):
    """(figure, its ``n`` axes) of panels of these inches, three in a row: ``top`` for a title, ``foot`` below them all.

    Margins are given: a constrained layout draws everything twice, and panels side by side would not be in line.
    """
    columns, rows = min(n, 3), -(-n // 3)
    w, h = width * columns, height * rows + foot
    figure = new_figure(w, h, layout=None)
    left, right, bottom = 0.62, 0.12, 0.44
    size = ((width - left - right) / w, (height - bottom - top) / h)
    corners = [(i % 3 * width + left, h - (i // 3 + 1) * height + bottom) for i in range(n)]
    return figure, [figure.add_axes((x / w, y / h, *size)) for x, y in corners]


def style_axes(ax, theme):
    ax.set_facecolor("none")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(theme["line"])
    ax.tick_params(colors=theme["muted"], length=0, labelsize=8)
    ax.grid(axis="y", color=theme["line"], linewidth=0.6)
    ax.set_axisbelow(True)


def _svg(figure):
    """The figure as SVG whose text takes the reader's own system font."""
    import matplotlib

    buffer = io.StringIO()
    # hashsalt and Date=None: the same run gives the same bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vae_jax"}):
        figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    return buffer.getvalue().replace("DejaVu Sans", "system-ui").encode()


def figure_png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor=LIGHT["surface"], metadata={"Software": None})
    return buffer.getvalue()


def uri(data, kind):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def both(draw):
    """The two renderings of ``draw(theme)`` for the page."""
    return {name: uri(_svg(draw(t)), "svg+xml") for name, t in (("light", LIGHT), ("dark", DARK))}


def recoloured(draw, figure=None):
    """As :func:`both` in half the time, for figures whose rasters have no colour of a theme: the dark one is the light
    one's text with the theme's colours exchanged. ``figure`` is ``draw(LIGHT)`` where there is one already."""
    light = _svg(figure or draw(LIGHT))
    dark = {LIGHT[name].encode(): DARK[name].encode() for name in LIGHT}
    found = re.compile(b"|".join(dark))
    twin = found.sub(lambda match: dark[match[0]], light)
    return {"light": uri(light, "svg+xml"), "dark": uri(twin, "svg+xml")}


def everywhere(draw):
    """(:func:`figure_png`, :func:`recoloured`) of one drawing, whose layout is found once."""
    figure = draw(LIGHT)
    file = figure_png(figure)
    figure.set_layout_engine("none")  # what it has found stays
    return file, recoloured(draw, figure)


def _limits(values):
    """The y range. A start far off the rest would flatten the curve: it may leave the picture."""
    values = np.asarray(values)[np.isfinite(values)]
    low, high = values.min(), values.max()
    if len(values) >= 10:
        a, b = np.quantile(values, (0.05, 0.95))
        low, high = max(low, a - (b - a)), min(high, b + (b - a))
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def draw_curve(ax, theme, key, series):
    from matplotlib import ticker

    style_axes(ax, theme)
    for split, (steps, values) in series.items():
        few = len(steps) <= 40
        style = {"marker": "o" if few else None, "markersize": 2.6, "solid_capstyle": "round"}
        ax.plot(steps, values, color=theme.get(split, theme["muted"]), linewidth=1.5, **style)
    ax.set_ylim(_limits(np.concatenate([values for _, values in series.values()])))
    ax.xaxis.set_major_locator(ticker.MaxNLocator(5, integer=True))
    ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    ax.yaxis.set_major_locator(ticker.MaxNLocator(5))
    percent = ticker.PercentFormatter(1, decimals=None)
    ax.yaxis.set_major_formatter(percent if key.endswith("accuracy") else ticker.ScalarFormatter(useOffset=False))
    ax.set_xlabel("step", fontsize=8, color=theme["muted"], loc="right", labelpad=1)


def draw_curves(curves, names):
    """Every curve in one figure, with its name and unit: ``curves.png``."""
    from matplotlib.lines import Line2D

    figure, axes = panels(len(curves), 4, 3, top=0.35, foot=0.3)
    for ax, (key, series) in zip(axes, curves.items(), strict=True):
        draw_curve(ax, LIGHT, key, series)
        name, unit = names[key]
        ax.set_title(f"{name}, {unit}" if unit else name, fontsize=10, color=LIGHT["ink"], loc="left")
    splits = dict.fromkeys(split for series in curves.values() for split in series)
    lines = [Line2D([], [], color=LIGHT.get(s, LIGHT["muted"]), label=s) for s in splits]
    figure.legend(handles=lines, loc="lower left", ncols=len(lines), frameon=False, fontsize=9)
    return figure


def plane(latents_PxD):
    """(points Px2, axis names): 2-D latents as they are, more by PCA, one against its rank."""
    z = np.nan_to_num(np.asarray(latents_PxD, np.float64))
    if z.shape[1] == 2:
        return z, ("z₁", "z₂")
    if z.shape[1] == 1:
        return np.column_stack([z[:, 0], np.argsort(np.argsort(z[:, 0]))]), ("z", "rank")
    z = z - z.mean(0)
    _, scale, axes = np.linalg.svd(z, full_matrices=False)
    share = scale**2 / max((scale**2).sum(), 1e-30)
    axes *= np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])[:, None]  # sign fixed: no flips
    return z @ axes[:2].T, tuple(f"PC {i + 1} ({share[i]:.0%} of the variance)" for i in range(2))


def draw_latents(theme, latents_PxD, labels_P, classes):
    from matplotlib import patheffects

    points, names = plane(latents_PxD)
    labels = np.full(len(points), -1) if labels_P is None else np.asarray(labels_P)
    present = [int(y) for y in np.unique(labels) if y >= 0]
    rows = -(-len(present) // 5) if len(present) <= TABLE_CLASSES else 0
    figure = new_figure(4.6, 4.3 + 0.22 * rows)
    ax = figure.subplots()
    style_axes(ax, theme)
    ax.grid(axis="both", color=theme["line"], linewidth=0.6)
    size = float(np.clip(12000 / max(len(points), 1), 3, 22))
    common = {"s": size, "linewidths": 0, "alpha": 0.8, "rasterized": True}
    bare = labels < 0
    ax.scatter(*points[bare].T, color="#88919c" if present else LIGHT["train"], **common)  # on either page
    # Classes are drawn point by point in the order of the data, so that none lies over all others.
    order = np.arange(len(points))
    for part in np.array_split(order, 8):
        for y in present:
            mine = part[labels[part] == y]
            ax.scatter(*points[mine].T, color=_class_colour(y), marker=_class_marker(y), **common)
    for y in present if rows else ():
        halo = [patheffects.withStroke(linewidth=2.5, foreground=theme["surface"])]
        middle = np.median(points[labels == y], axis=0)
        name = _class_name(classes, y)
        ax.text(
            *middle, name, ha="center", va="center", fontsize=9, weight="bold", color=theme["ink"]
        ).set_path_effects(halo)
        ax.scatter([], [], color=_class_colour(y), marker=_class_marker(y), s=22, linewidths=0, label=name)
    if rows:
        style = {"frameon": False, "fontsize": 8, "labelcolor": theme["ink"], "handletextpad": 0.2}
        figure.legend(loc="outside lower center", ncols=5, columnspacing=1.2, **style)
    low, high = np.quantile(points, (0.001, 0.999), axis=0)
    margin = 0.05 * (high - low) + 1e-6
    ax.set_xlim(low[0] - margin[0], high[0] + margin[0])
    ax.set_ylim(low[1] - margin[1], high[1] + margin[1])
    ax.set_xlabel(names[0], fontsize=8.5, color=theme["muted"])
    ax.set_ylabel(names[1], fontsize=8.5, color=theme["muted"])
    return figure


def draw_rates(theme, kl_D, axis):
    figure = new_figure(9, 2.2)
    ax = figure.subplots()
    style_axes(ax, theme)
    ax.bar(np.arange(1, len(kl_D) + 1), kl_D, width=0.8, color=theme["train"])
    ax.set_xlim(0.4, max(len(kl_D), 12) + 0.6)  # two dimensions are two bars, not two walls
    ax.set_xlabel(axis, fontsize=8.5, color=theme["muted"])
    ax.set_ylabel("nats", fontsize=8.5, color=theme["muted"])
    return figure


def draw_lines(theme, axes):
    """Curves of shares: ``axes`` are (title, name of x, {label: (x, y)}, whether the diagonal is drawn)."""
    from matplotlib import ticker

    columns = 1 if len(axes) == 1 else 2
    rows = -(-len(axes) // columns)
    figure = new_figure(4.6 * columns, 3.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax, (title, name, lines, diagonal) in zip(panels, axes, strict=False):
        style_axes(ax, theme)
        if diagonal:
            ax.plot([0, 1], [0, 1], color=theme["muted"], linewidth=0.8, linestyle=":")
        for i, (label, (x, y)) in enumerate(lines.items()):
            colour = (theme["train"], theme["validation"], *CLASS_COLOURS[3:])[i]
            few = len(x) <= 20
            ax.plot(x, y, color=colour, linewidth=1.5, marker="o" if few else None, markersize=3, label=label)
        ax.yaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None))
        if len(x) > 20 or diagonal:
            ax.xaxis.set_major_formatter(ticker.PercentFormatter(1, decimals=None))
        ax.set_ylim(0, 1.02)
        ax.set_title(title, fontsize=9, color=theme["ink"], loc="left")
        ax.set_xlabel(name, fontsize=8.5, color=theme["muted"])
        if len(lines) > 1:
            ax.legend(loc="lower left", frameon=False, fontsize=8, labelcolor=theme["ink"])
    return figure


SCORES = {
    "elbo": "−ELBO",
    "iw": "−log p(x)",
    "typicality": "typicality",
    "regret": "likelihood regret",
    "complexity": "input complexity",
    "waic": "−WAIC",
    "latent": "latent distance",
}


def draw_strangers(theme, *, name, auroc, scores):
    """AUROCs {score: (value, low, high)} with their intervals, beside histograms {score: (inside_N, outside_M)}."""
    from matplotlib import ticker

    figure = new_figure(3.3 * (1 + len(scores)), 3.0)
    first, *rest = figure.subplots(1, 1 + len(scores), squeeze=False)[0]
    style_axes(first, theme)
    first.axvline(0.5, color=theme["muted"], linewidth=0.8, linestyle=":")
    for i, (value, low, high) in enumerate(auroc.values()):
        first.plot([low, high], [i, i], color=theme["train"], linewidth=1.5)
        first.plot([value], [i], "o", color=theme["train"], markersize=4)
        at, side = (value + 0.03, "left") if value < 0.8 else (value - 0.03, "right")
        first.text(at, i - 0.08, f"{value:.3f}", ha=side, va="bottom", fontsize=8, color=theme["ink"])
    first.set_yticks(range(len(auroc)), [SCORES.get(score, score) for score in auroc])
    first.set_ylim(len(auroc) - 0.4, -0.8)
    first.set_xlim(0, 1.02)
    first.set_title(f"AUROC against {name}", fontsize=9, color=theme["ink"], loc="left")
    for ax, (score, sets) in zip(rest, scores.items(), strict=True):
        style_axes(ax, theme)
        bins = np.linspace(*np.quantile(np.concatenate(sets), (0, 0.995)), 50)
        for values, colour, label in zip(sets, ("train", "validation"), ("test images", name), strict=True):
            style = {"color": theme[colour], "alpha": 0.55, "label": label, "density": True}
            ax.hist(np.clip(values, bins[0], bins[-1]), bins, **style)
        ax.set_yticks([])
        ax.xaxis.set_major_locator(ticker.MaxNLocator(4))
        ax.set_title(SCORES.get(score, score), fontsize=9, color=theme["ink"], loc="left")
        ax.legend(frameon=False, fontsize=8, labelcolor=theme["ink"])
    return figure


def gallery(asked_QxHxWxC, found_QxKxHxWxC, same_QxK):
    """RGBA of each image asked about at the left of what was found for it; what is not ``same`` is faint."""
    q, k = same_QxK.shape
    left = grid([asked_QxHxWxC], 1)
    right = grid([found_QxKxHxWxC.reshape(-1, *asked_QxHxWxC.shape[1:])], k)
    side = left.shape[1] + 8  # of a tile and its gap
    for i, j in np.argwhere(~np.asarray(same_QxK)):
        rows = slice(i * (left.shape[0] + 8) // q, (i + 1) * (left.shape[0] + 8) // q)
        part = right[rows, j * side : (j + 1) * side, 3]
        part[part > 0] = 90
    gap = np.zeros((len(left), 40, 4), np.uint8)
    return np.concatenate([left, gap, right], 1)


def _class_colour(y):
    return CLASS_COLOURS[y % len(CLASS_COLOURS)]


def _class_marker(y):
    return MARKERS[y // len(CLASS_COLOURS) % len(MARKERS)]


def _class_name(classes, y):
    return str(classes[y]) if y < len(classes) else str(y)


def _shade(confusion_YxY):
    """Opacity of a cell: its share of the row; of errors the square root, so that a single one shows."""
    share = confusion_YxY / np.maximum(confusion_YxY.sum(1, keepdims=True), 1)
    return np.where(np.eye(len(share), dtype=bool), share, np.sqrt(share))


def draw_confusion(theme, confusion_YxY, classes):
    from matplotlib.colors import to_rgb

    y = len(confusion_YxY)
    size = min(max(3.2, 0.46 * y + 1.2), 9)
    figure = new_figure(size, size)
    ax = figure.subplots()
    style_axes(ax, theme)
    ax.grid(False)
    shade = _shade(confusion_YxY)
    right = np.eye(y, dtype=bool)[..., None]
    colour = np.where(right, to_rgb(theme["train"]), to_rgb(theme["validation"]))
    ax.imshow(np.concatenate([colour, shade[..., None]], -1), interpolation="nearest")
    few = y <= TABLE_CLASSES
    if few:
        for i, j in np.ndindex(y, y):
            ink = theme["surface"] if shade[i, j] > 0.85 else theme["ink"] if confusion_YxY[i, j] else theme["line"]
            ax.text(j, i, f"{confusion_YxY[i, j]:,}", ha="center", va="center", fontsize=8, color=ink)
        names = [_class_name(classes, i) for i in range(y)]
        ax.set_xticks(range(y), names, rotation=90 if max(map(len, names)) > 3 else 0)
        ax.set_yticks(range(y), names)
    ax.set_xlabel("predicted", fontsize=8.5, color=theme["muted"])
    ax.set_ylabel("true", fontsize=8.5, color=theme["muted"])
    return figure


def confusion_table(confusion_YxY, classes):
    """What the template needs for the matrix as a table, with the most frequent error in words."""
    shade = _shade(confusion_YxY)
    totals = confusion_YxY.sum(1)
    rows = []
    for i, counts in enumerate(confusion_YxY):
        cells = [
            {"count": int(c), "shade": round(float(shade[i, j]), 3), "right": i == j} for j, c in enumerate(counts)
        ]
        recall = f"{counts[i] / totals[i]:.1%}" if totals[i] else "–"
        rows.append({"name": _class_name(classes, i), "cells": cells, "recall": recall})
    wrong = confusion_YxY * (1 - np.eye(len(rows), dtype=confusion_YxY.dtype))
    worst = ""
    if wrong.any():
        i, j = np.unravel_index(wrong.argmax(), wrong.shape)
        pair = f"{rows[i]['name']} taken for {rows[j]['name']}"
        worst = f"Most frequent error: {pair}, {wrong[i, j]:,} of {totals[i]:,}."
    return {"rows": rows, "long": max(len(r["name"]) for r in rows) > 3, "worst": worst}


def banner(report, path):
    """One picture from a report's folder: reconstructions, samples and latent map, side by side on white."""
    from PIL import Image

    names = [n for n in ("reconstructions", "samples", "latents") if os.path.exists(f"{report}/{n}.png")]
    if not names:
        raise UserError(f"{report}: no pictures in it; want the report folder of a run")
    height, gap = 420, 24
    tiles = [Image.open(f"{report}/{name}.png").convert("RGBA") for name in names]
    tiles = [t.resize((round(t.width * height / t.height), height), Image.LANCZOS) for t in tiles]
    size = (sum(t.width for t in tiles) + gap * (len(tiles) + 1), height + 2 * gap)
    page, x = Image.new("RGBA", size, "white"), gap
    for tile in tiles:
        page.alpha_composite(tile, (x, gap))
        x += tile.width + gap
    buffer = io.BytesIO()
    page.convert("RGB").save(buffer, "PNG", optimize=True)
    replace(path, buffer.getvalue())


if __name__ == "__main__":  # python -m vae_jax.report.pictures runs/digits/report results/digits.png
    import sys

    banner(*sys.argv[1:3])
