"""Pictures: grids of images as PNG, figures as SVG for a light and for a dark page."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vae_jax.config import UserError
from vae_jax.report.words import visible
from vae_jax.train.log import replace

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

Theme = Mapping[str, str]  # name of a colour → #rrggbb
Draw = Callable[[Theme], "Figure"]

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


def png(rgba_HxWx4: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgba_HxWx4).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def first_images(label_N: np.ndarray | None, n: int) -> np.ndarray:
    """Rows of the ``n`` images that a report shows first, each class in turn.

    The first image of each class comes first, then the second of each, so that data in the order
    of their classes show all of them. Of more than ``n`` classes an even stride is shown. Without
    labels these are the first ``n`` rows.
    """
    if label_N is None:
        return np.arange(n)
    label_N = np.asarray(label_N)
    n = min(n, len(label_N))
    rows = np.argsort(label_N, kind="stable")  # class by class, each in the order of the data
    _, starts, counts = np.unique(label_N[rows], return_index=True, return_counts=True)
    rank = np.arange(len(rows)) - np.repeat(starts, counts)  # place of a row within its class
    turns = rows[np.argsort(rank, kind="stable")]
    classes = len(starts)
    if classes > n:
        return turns[np.arange(n) * classes // n]
    return turns[:n]


def grid(stacks: Iterable[np.ndarray], columns: int) -> np.ndarray:
    """RGBA bytes of images in rows; gaps are transparent, so the grid fits a light and a dark page.

    ``stacks`` are arrays [N, H, W, C] in [0, 1]. Image i of each is in column i mod columns; a row
    of the first stack is followed by the same images of the second. A pixel becomes a square block
    of whole pixels: nothing is smoothed. Three channels are RGB; any other number is averaged.
    """
    stacks = [np.clip(np.nan_to_num(np.asarray(s, np.float32)), 0, 1) for s in stacks]
    n, height, width, channels = stacks[0].shape
    columns = min(columns, n)
    k = max(1, round(TILE / max(height, width)))
    gap = 8
    between = 16 if len(stacks) > 1 else 0
    band = len(stacks) * (height * k + gap) + between  # one row of every stack
    size = (-(-n // columns) * band - gap - between, columns * (width * k + gap) - gap)
    canvas = np.zeros((*size, 4), np.uint8)
    for s, images in enumerate(stacks):
        for i, image in enumerate(images):
            top = i // columns * band + s * (height * k + gap)
            left = i % columns * (width * k + gap)
            tile = canvas[top : top + height * k, left : left + width * k]
            rgb = image if channels == 3 else image.mean(-1, keepdims=True)
            tile[..., :3] = np.rint(255 * rgb).astype(np.uint8).repeat(k, 0).repeat(k, 1)
            tile[..., 3] = 255
    return canvas


def columns(n: int) -> int:
    """A width that fills the last row where one of the usual widths does."""
    return next((c for c in (8, 10, 9, 7, 6) if n % c == 0), 8)


def gallery(
    query_QxHxWxC: np.ndarray,
    neighbour_QxKxHxWxC: np.ndarray,
    same_QxK: np.ndarray,
) -> np.ndarray:
    """RGBA of each query at the left of its K neighbours; those of another class are faint."""
    q, k = same_QxK.shape
    left = grid([query_QxHxWxC], 1)
    right = grid([neighbour_QxKxHxWxC.reshape(-1, *query_QxHxWxC.shape[1:])], k)
    side = left.shape[1] + 8  # of a tile and its gap
    for i, j in np.argwhere(~np.asarray(same_QxK)):
        rows = slice(i * (left.shape[0] + 8) // q, (i + 1) * (left.shape[0] + 8) // q)
        part = right[rows, j * side : (j + 1) * side, 3]
        part[part > 0] = 90
    gap = np.zeros((len(left), 40, 4), np.uint8)
    return np.concatenate([left, gap, right], 1)


# --- figures -------------------------------------------------------------------------------------


def literal(name: str) -> str:
    r"""A name from data as matplotlib draws it unchanged: "$" would begin its maths."""
    return visible(str(name)).replace("$", r"\$")


def legend(
    owner: Axes | Figure,
    names: Sequence[str],
    artists: Sequence[Artist],
    **style: Any,
) -> Legend:
    """A legend of names from data; matplotlib itself leaves out a label that begins with _."""
    box = owner.legend(artists, list(map(str, range(len(artists)))), **style)
    for text, name in zip(box.get_texts(), names, strict=True):
        text.set_text(literal(name))
    return box


def new_figure(
    width: float, height: float, layout: Literal["constrained"] | None = "constrained"
) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout, facecolor="none")


def panels(
    n: int,
    width: float,
    height: float,
    top: float,
    foot: float = 0,
) -> tuple[Figure, list[Axes]]:
    """A figure and its ``n`` axes, panels of these inches, three in a row.

    Each panel has ``top`` for a title; ``foot`` is below them all. Margins are fixed: a constrained
    layout draws everything twice, and panels side by side would not be in line.
    """
    columns = min(n, 3)
    w = width * columns
    h = height * -(-n // 3) + foot
    figure = new_figure(w, h, layout=None)
    left = 0.62
    bottom = 0.44
    size = ((width - left - 0.12) / w, (height - bottom - top) / h)
    axes = []
    for i in range(n):
        x = i % 3 * width + left
        y = h - (i // 3 + 1) * height + bottom
        axes.append(figure.add_axes((x / w, y / h, *size)))
    return figure, axes


def style_axes(ax: Axes, theme: Theme) -> None:
    ax.set_facecolor("none")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color(theme["line"])
    # Both: on a logarithmic axis of less than a decade the minor ticks have the labels.
    ax.tick_params(which="both", colors=theme["muted"], length=0, labelsize=8)
    ax.grid(axis="y", color=theme["line"], linewidth=0.6)
    ax.set_axisbelow(True)


def _svg(figure: Figure, letters: str = "none", **style: Any) -> bytes:
    """The figure as SVG whose text takes the reader's own system font.

    With ``letters="path"`` letters are outlines, as maths wants them.
    """
    import matplotlib

    buffer = io.StringIO()
    # Only rasters within it have a resolution; the page has each of them twice.
    style |= {"dpi": 120, "metadata": {"Date": None, "Creator": None}}
    # hashsalt and Date=None: the same run gives the same bytes.
    with matplotlib.rc_context({"svg.fonttype": letters, "svg.hashsalt": "vae_jax"}):
        figure.savefig(buffer, format="svg", **style)
    return buffer.getvalue().replace("DejaVu Sans", "system-ui").encode()


def figure_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    style = {"facecolor": LIGHT["surface"], "metadata": {"Software": None}}
    figure.savefig(buffer, format="png", dpi=200, **style)
    return buffer.getvalue()


def uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def both(draw: Draw) -> dict[str, str]:
    """The two renderings of ``draw(theme)`` for the page."""
    return {"light": uri(_svg(draw(LIGHT)), "svg+xml"), "dark": uri(_svg(draw(DARK)), "svg+xml")}


def recoloured(draw: Draw, figure: Figure | None = None) -> dict[str, str]:
    """As :func:`both` in half the time, for figures whose rasters have no colour of a theme.

    The dark one is the light one's text with the theme's colours exchanged. ``figure`` is
    ``draw(LIGHT)`` where there is one already.
    """
    light = _svg(figure or draw(LIGHT))
    colours = {LIGHT[name].encode(): DARK[name].encode() for name in LIGHT}
    dark = re.sub(b"|".join(colours), lambda match: colours[match[0]], light)
    return {"light": uri(light, "svg+xml"), "dark": uri(dark, "svg+xml")}


def maths(latex: str) -> dict[str, str]:
    """An equation for a light and a dark page, no larger than it is.

    Raises:
      ValueError: matplotlib cannot draw it.
    """
    views = {}
    for name, theme in (("light", LIGHT), ("dark", DARK)):
        figure = new_figure(0.1, 0.1, layout=None)
        figure.text(0, 0, f"${latex}$", fontsize=13, color=theme["ink"], math_fontfamily="stix")
        svg = _svg(figure, letters="path", bbox_inches="tight", pad_inches=0.05)
        views[name] = uri(svg, "svg+xml")
    return views


def everywhere(draw: Draw) -> tuple[bytes, dict[str, str]]:
    """(:func:`figure_png`, :func:`recoloured`) of one drawing, whose layout is computed once."""
    figure = draw(LIGHT)
    file = figure_png(figure)
    figure.set_layout_engine("none")  # the positions stay
    return file, recoloured(draw, figure)


# --- classes -------------------------------------------------------------------------------------


def class_name(classes: Sequence[str], y: int) -> str:
    if y < len(classes):
        return str(classes[y])
    return str(y)


def shade(confusion_YxY: np.ndarray) -> np.ndarray:
    """Opacity of each cell: its share of the row, for errors its square root, so that one shows."""
    share = confusion_YxY / np.maximum(confusion_YxY.sum(1, keepdims=True), 1)
    return np.where(np.eye(len(share), dtype=bool), share, np.sqrt(share))


def confusion_table(confusion_YxY: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """The matrix as the template's table, with the most frequent error in words."""
    opacity = shade(confusion_YxY)
    totals = confusion_YxY.sum(1)
    rows = []
    for i, counts in enumerate(confusion_YxY):
        cells = []
        for j, count in enumerate(counts):
            cells.append(
                {"count": int(count), "shade": round(float(opacity[i, j]), 3), "right": i == j},
            )
        recall = f"{counts[i] / totals[i]:.1%}" if totals[i] else "–"
        rows.append({"name": class_name(classes, i), "cells": cells, "recall": recall})
    wrong = confusion_YxY * (1 - np.eye(len(rows), dtype=confusion_YxY.dtype))
    worst = ""
    if wrong.any():
        i, j = np.unravel_index(wrong.argmax(), wrong.shape)
        pair = f"{rows[i]['name']} taken for {rows[j]['name']}"
        worst = f"Most frequent error: {pair}, {wrong[i, j]:,} of {totals[i]:,}."
    return {"rows": rows, "long": max(len(r["name"]) for r in rows) > 3, "worst": worst}


def banner(report: str, path: str) -> None:
    """Write a report's reconstructions, samples and latent map side by side on white."""
    from PIL import Image

    height = 420
    gap = 24
    tiles = []
    for name in ("reconstructions", "samples", "latents"):
        file = f"{report}/{name}.png"
        if os.path.exists(file):
            image = Image.open(file).convert("RGBA")
            width = round(image.width * height / image.height)
            tiles.append(image.resize((width, height), Image.LANCZOS))
    if not tiles:
        raise UserError(f"{report}: no pictures in it; want the report folder of a run")
    size = (sum(t.width for t in tiles) + gap * (len(tiles) + 1), height + 2 * gap)
    page = Image.new("RGBA", size, "white")
    x = gap
    for tile in tiles:
        page.alpha_composite(tile, (x, gap))
        x += tile.width + gap
    buffer = io.BytesIO()
    page.convert("RGB").save(buffer, "PNG", optimize=True)
    replace(path, buffer.getvalue())


if __name__ == "__main__":  # python -m vae_jax.report.pictures runs/digits/report digits.png
    import sys

    banner(*sys.argv[1:3])
