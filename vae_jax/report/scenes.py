"""Panels of scenes: true and detected boxes on canvases, the worst misses, precision and recall."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vae_jax.report import pictures, plots

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUE = pictures.CLASS_COLOURS[0]
DETECTED = pictures.CLASS_COLOURS[1]
COLUMNS = 8
GAP = 0.06  # between two canvases, of a canvas's side


class Canvases(NamedTuple):
    """Some scenes. A row of ``true`` and ``detected`` is x, y, w, h in pixels and the class.

    Rows beyond an image's number of objects have class −1.
    """

    image: np.ndarray  # NxHxWxC in [0, 1]
    true: np.ndarray  # NxMx5
    detected: np.ndarray  # NxKx5


def draw_canvases(theme: pictures.Theme, canvases: Canvases, classes: Sequence[str] = ()) -> Figure:
    """Canvases in rows with their boxes; ``classes`` names what is written above a detected one."""
    n, height, width = canvases.image.shape[:3]
    columns = min(COLUMNS, n)
    rows = -(-n // columns)
    step_x = width * (1 + GAP)
    step_y = height * (1 + GAP)
    inches = 9 / COLUMNS
    figure = pictures.new_figure(inches * columns, inches * rows * step_y / step_x, layout=None)
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_axis_off()
    for i in range(n):
        left = i % columns * step_x
        top = i // columns * step_y
        rgb = np.broadcast_to(canvases.image[i], (height, width, 3))
        extent = (left, left + width, top + height, top)
        ax.imshow(rgb, extent=extent, interpolation="nearest", vmin=0, vmax=1)
        _rectangles(ax, canvases.true[i], (left, top), TRUE, ":")
        _rectangles(ax, canvases.detected[i], (left, top), DETECTED, "-", classes)
    ax.set_aspect("auto")
    ax.set_xlim(0, columns * step_x)
    ax.set_ylim(rows * step_y, 0)
    return figure


def _rectangles(
    ax: Axes,
    boxes: np.ndarray,
    corner: tuple[float, float],
    colour: str,
    line: str,
    classes: Sequence[str] = (),
) -> None:
    from matplotlib.patches import Rectangle

    for x, y, w, h, label in boxes[boxes[:, 4] >= 0]:
        place = (corner[0] + x, corner[1] + y)
        style = {"fill": False, "edgecolor": colour, "linewidth": 1.1, "linestyle": line}
        ax.add_patch(Rectangle(place, w, h, **style))
        if classes:
            name = pictures.literal(pictures.class_name(classes, int(label)))
            ax.text(*place, name, color=colour, fontsize=5.5, va="bottom", clip_on=True)


def draw_precision(theme: pictures.Theme, curves: Mapping[str, np.ndarray]) -> Figure:
    """Precision against recall, for each IoU threshold: precision at evenly spaced recalls."""
    lines = {}
    for name, precision in curves.items():
        lines[name] = (np.linspace(0, 1, len(precision)), precision)
    return plots.draw_lines(theme, [plots.Lines("precision", "recall", lines)])


def views(
    scenes: Mapping, classes: Sequence[str]
) -> dict[str, tuple[str, str, str, pictures.Draw]]:
    """{name: (heading, caption, alternative text, drawing)} of what the task ``scenes`` kept.

    ``scenes`` has ``shown`` and ``missed``, :class:`Canvases` as tuples, ``classes``, whether boxes
    have classes of their own, and ``precision``, {threshold: precision at evenly spaced recalls}.
    """
    names = classes if scenes["classes"] else ()
    boxes = "Dotted blue: the true boxes. Orange: those with a probability above 1/2."
    worst = "The test scenes with the most objects missed, or boxes without an object."
    result = {}
    for name, heading, caption in (
        ("scenes", "Scenes and their objects", boxes),
        ("scene_misses", "The worst misses", f"{worst} {boxes}"),
    ):
        canvases = Canvases(*scenes["shown" if name == "scenes" else "missed"])
        if not len(canvases.image):
            continue
        true = int((canvases.true[..., 4] >= 0).sum())
        detected = int((canvases.detected[..., 4] >= 0).sum())
        alt = f"{len(canvases.image)} scenes with {true} true and {detected} detected boxes"
        draw = functools.partial(draw_canvases, canvases=canvases, classes=names)
        result[name] = (heading, caption, alt, draw)
    curves = scenes["precision"]
    ends = [f"{name}: mean precision {np.mean(curve):.3f}" for name, curve in curves.items()]
    caption = "Of the boxes of all classes together, by their score. The area is the AP."
    draw = functools.partial(draw_precision, curves=curves)
    result["scene_precision"] = ("Precision and recall", caption, "; ".join(ends), draw)
    return result
