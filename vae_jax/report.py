"""Metrics files, pictures, and one page that a person opens.

``metrics.jsonl`` holds a strict JSON object per line: ``{"step": 100, "split": "train", "loss": 1.5}``.
The page (:func:`write`) needs no network, no script and no other file: pictures are inside it, once
for a light screen and once for a dark one. Every file is written beside its place and moved there
whole, so a reader never sees half of one.
"""

import base64
import contextlib
import io
import json
import math
import numbers
import os
import re
import tempfile
from typing import NamedTuple

import numpy as np

from vae_jax.config import UserError, flatten

METRICS_FILE = "metrics.jsonl"
PICTURES = ("reconstructions", "samples", "interpolations", "latents", "rates", "confusion", "curves")

# key -> (name, unit, format, which way is better, meaning)
METRICS = {
    "n": ("Test images", "", "{:,}", "", "Every image of the test set counts exactly once."),
    "accuracy": ("Accuracy", "%", "{:.2%}", "higher", "Images whose most probable class is the true one."),
    "cross_entropy_nats": ("Cross-entropy", "nats", "{:.4f}", "lower", "Mean of −log p(true class | image)."),
    "ece": (
        "Calibration error",
        "%",
        "{:.2%}",
        "lower",
        "ECE: mean gap between confidence and accuracy, over bins of confidence.",
    ),
    "elbo_nats": (
        "ELBO",
        "nats / image",
        "{:.2f}",
        "higher",
        "Evidence lower bound on log p(x): −(reconstruction + KL).",
    ),
    "kl_nats": ("KL", "nats / image", "{:.2f}", "", "KL(q(z|x) ‖ p(z)): what the latent code costs (the rate)."),
    "reconstruction_nats": (
        "Reconstruction",
        "nats / image",
        "{:.2f}",
        "",
        "Mean of −log p(x|z), z from q(z|x): what the code leaves unexplained (the distortion).",
    ),
    "iw_nats": (
        "Importance-weighted bound",
        "nats / image",
        "{:.2f}",
        "higher",
        "Bound on log p(x) with K samples per image; tighter than the ELBO.",
    ),
    "iw_nats_se": ("… its standard error", "nats / image", "{:.2f}", "", "Over the images of the test set."),
    "iw_k": ("… its samples K", "", "{:,}", "", "Importance samples per image."),
    "bits_per_dim": (
        "Bits per dimension",
        "bits / dimension",
        "{:.3f}",
        "lower",
        "Code length per pixel and channel; 8-bit images of pure noise need 8.",
    ),
    "knn_accuracy": (
        "kNN accuracy",
        "%",
        "{:.2%}",
        "higher",
        "Nearest neighbours in the latent means: what the code alone knows of the class.",
    ),
    "active_units": (
        "Active units",
        "dimensions",
        "{:,}",
        "",
        "Latent dimensions whose posterior mean moves with the image.",
    ),
    "mutual_information_nats": (
        "Mutual information",
        "nats",
        "{:.2f}",
        "",
        "I(x; z) under q over the test set: what the code says of which image it is; at most log n.",
    ),
    "aggregate_kl_nats": (
        "Aggregate KL",
        "nats",
        "{:.2f}",
        "",
        "KL(q(z) ‖ p(z)): how far the codes of all images together are from the prior. Rate = the two added.",
    ),
}
KEY_FIGURES = ("accuracy", "elbo_nats", "iw_nats", "bits_per_dim", "knn_accuracy", "cross_entropy_nats", "ece")

CURVES = {  # key of a history row -> (name, unit)
    "loss": ("Loss", ""),
    "elbo": ("ELBO", "nats"),
    "log_px": ("Reconstruction log p(x|z)", "nats"),
    "kl": ("KL(q(z|x) ‖ p(z))", "nats"),
    "accuracy": ("Accuracy", ""),
    "cross_entropy": ("Cross-entropy", "nats"),
}
MORE_CURVES = {  # folded away on the page, with every key that is in neither
    "images_per_s": ("Speed", "images / s"),
    "goodput": ("Goodput: share of the wall time in steps", ""),
    "lr": ("Learning rate", ""),
}
RUN = {  # key of ``run`` -> its name on the page
    "dataset": "Data set",
    "parameters": "Parameters",
    "seed": "Seed",
    "device": "Device",
    "seconds": "Duration",
    "training_seconds": "Training",
    "compile_seconds": "Compilation",
    "evaluation_seconds": "Evaluation",
    "images_per_s": "Images per second",
    "date": "Date",
    "commit": "Commit",
    "command": "Command",
    "versions": "Versions",
}

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


class Pictures(NamedTuple):
    """What the page draws; a panel whose arrays are None is left out. Images are in [0, 1]."""

    originals: np.ndarray | None = None  # NxHxWxC, beside the reconstructions
    reconstructions: np.ndarray | None = None  # NxHxWxC
    samples: np.ndarray | None = None  # MxHxWxC, means of p(x|z) with z from the prior
    interpolations: np.ndarray | None = None  # RxSxHxWxC, R walks of S steps
    latents: np.ndarray | None = None  # PxD
    latent_labels: np.ndarray | None = None  # P, integers; a negative one is "no label"
    confusion: np.ndarray | None = None  # YxY counts: rows true, columns predicted
    kl_per_dimension: np.ndarray | None = None  # D, nats, in falling order


# --- files ---------------------------------------------------------------------------------------


def _disk_error(path, error):
    want = "want a folder that can be written, on a disk with room"
    return UserError(f"{path}: {error.strerror or error}; {want}")


def _replace(path, data):
    """Write bytes beside ``path``, then move them there: the old file or the new one, not half."""
    temporary = None
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".writing-")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            umask = os.umask(0)
            os.umask(umask)
            os.fchmod(file.fileno(), 0o666 & ~umask)  # mkstemp's 0600 would hide a report from a web server
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise _disk_error(path, error) from None


def _history_lines(path):
    """(line, row) of each whole line. A torn last line (the writer was killed) is left out."""
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = file.read().split("\n")
    pairs = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is '' or torn
        try:
            row = json.loads(line)
            row["step"], row["split"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines) - 1:
                break
            raise UserError(f"{path}: line {number} is no row of metrics; mend or remove it") from None
        pairs.append((line, row))
    return pairs


def read_history(folder):
    """The rows of ``folder/metrics.jsonl``, oldest first; [] where there is none."""
    return [row for _, row in _history_lines(os.path.join(folder, METRICS_FILE))]


class MetricsLog:
    """Rows of metrics as JSON lines, mirrored to TensorBoard in ``folder/tensorboard/SPLIT``.

    Args:
      folder: made where missing.
      resume_step: the step that training goes on from. Rows of later steps are dropped (those steps
        are run again), and so is a torn last line. None begins a new file.
    """

    def __init__(self, folder, resume_step=None):
        self._folder, self._resume_step, self._writers = folder, resume_step, {}
        self._path = os.path.join(folder, METRICS_FILE)
        kept = [] if resume_step is None else _history_lines(self._path)
        kept = [line + "\n" for line, row in kept if row["step"] <= resume_step]
        _replace(self._path, "".join(kept).encode())
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def write(self, step, split, values):
        """Append one row; a number that is not finite becomes null. A later kill -9 keeps the row."""
        values = {k: float(v) for k, v in values.items()}
        finite = {k: v for k, v in values.items() if math.isfinite(v)}
        row = {"step": int(step), "split": split} | {k: finite.get(k) for k in values}
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
            for key, value in finite.items():
                self._writer(split).add_scalar(key, value, int(step))
        except OSError as error:
            raise _disk_error(self._path, error) from None

    def _writer(self, split):
        """A writer per split: TensorBoard then draws train and validation in one chart."""
        if split not in self._writers:
            from tensorboardX import SummaryWriter

            # TensorBoard hides the events from purge_step on that an earlier process wrote.
            purge = None if self._resume_step is None else self._resume_step + 1
            where = os.path.join(self._folder, "tensorboard", split)
            self._writers[split] = SummaryWriter(where, purge_step=purge, flush_secs=30)
        return self._writers[split]

    def close(self):
        self._file.close()
        for writer in self._writers.values():
            writer.close()


# --- pictures ------------------------------------------------------------------------------------


def _png(rgba_HxWx4):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgba_HxWx4).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _grid(stacks, columns):
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


def _columns(n):
    """A width that fills the last row where one of the usual widths does."""
    return next((c for c in (8, 10, 9, 7, 6) if n % c == 0), 8)


def save_grid(path, images_NxHxWxC, columns):
    """Write images in [0, 1] as one PNG, ``columns`` in a row; a pixel is a block of whole pixels."""
    _replace(path, _png(_grid([images_NxHxWxC], columns)))


def _figure(width, height):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def _style(ax, theme):
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


def _figure_png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, facecolor=LIGHT["surface"], metadata={"Software": None})
    return buffer.getvalue()


def _uri(data, kind):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _both(draw):
    """The two renderings of ``draw(theme)`` for the page."""
    return {name: _uri(_svg(draw(t)), "svg+xml") for name, t in (("light", LIGHT), ("dark", DARK))}


def _recoloured(draw):
    """As :func:`_both` in half the time, for figures without a raster: the dark one is the light one's text with
    the theme's colours exchanged."""
    light = _svg(draw(LIGHT))
    dark = {LIGHT[name].encode(): DARK[name].encode() for name in LIGHT}
    found = re.compile(b"|".join(dark))
    twin = found.sub(lambda match: dark[match[0]], light)
    return {"light": _uri(light, "svg+xml"), "dark": _uri(twin, "svg+xml")}


def _has(array, least=1):
    return array is not None and len(array) >= least


def _number(value):
    """A number or NaN from what a JSON row may hold."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else math.nan


def _series(history, key):
    """{split: (steps, values)} of the splits that have the key, NaN where a value is not finite."""
    series = {}
    for row in history:
        if key in row and key not in ("step", "split"):
            steps, values = series.setdefault(row.get("split", "train"), ([], []))
            steps.append(row["step"])
            values.append(_number(row[key]))
    return {s: v for s, v in series.items() if np.isfinite(v[1]).any()}


def _limits(values):
    """The y range. A start far off the rest would flatten the curve: it may leave the picture."""
    values = np.asarray(values)[np.isfinite(values)]
    low, high = values.min(), values.max()
    if len(values) >= 10:
        a, b = np.quantile(values, (0.05, 0.95))
        low, high = max(low, a - (b - a)), min(high, b + (b - a))
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _draw_curve(ax, theme, key, series):
    from matplotlib import ticker

    _style(ax, theme)
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


def _curve_panel(key, series):
    name, unit = (CURVES | MORE_CURVES).get(key, (_words(key), ""))

    def draw(theme):
        figure = _figure(4, 2.4)
        _draw_curve(figure.subplots(), theme, key, series)
        return figure

    last = {}
    for split, (steps, values) in series.items():
        at = np.flatnonzero(np.isfinite(values))[-1]
        last[split] = (steps[at], f"{values[at]:.2%}" if key.endswith("accuracy") else _plain(values[at]))
    alt = "; ".join(f"{split}: {value} at step {step}" for split, (step, value) in last.items())
    return {"name": name, "unit": unit, "last": last, "alt": f"{name} over the steps. {alt}.", **_recoloured(draw)}


def _draw_curves(panels):
    """Every curve in one figure: ``curves.png``."""
    from matplotlib.lines import Line2D

    figure = _figure(12, 3 * -(-len(panels) // 3))
    axes = figure.subplots(-(-len(panels) // 3), 3, squeeze=False).ravel()
    for ax in axes[len(panels) :]:
        ax.remove()
    for ax, (key, series) in zip(axes, panels.items(), strict=False):
        _draw_curve(ax, LIGHT, key, series)
        name, unit = (CURVES | MORE_CURVES).get(key, (_words(key), ""))
        ax.set_title(f"{name}, {unit}" if unit else name, fontsize=10, color=LIGHT["ink"], loc="left")
    splits = dict.fromkeys(split for series in panels.values() for split in series)
    lines = [Line2D([], [], color=LIGHT.get(s, LIGHT["muted"]), label=s) for s in splits]
    figure.legend(handles=lines, loc="outside lower left", ncols=len(lines), frameon=False, fontsize=9)
    return figure


def _plane(latents_PxD):
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


def _draw_latents(theme, latents_PxD, labels_P, classes):
    from matplotlib import patheffects

    points, names = _plane(latents_PxD)
    labels = np.full(len(points), -1) if labels_P is None else np.asarray(labels_P)
    present = [int(y) for y in np.unique(labels) if y >= 0]
    rows = -(-len(present) // 5) if len(present) <= TABLE_CLASSES else 0
    figure = _figure(4.6, 4.3 + 0.22 * rows)
    ax = figure.subplots()
    _style(ax, theme)
    ax.grid(axis="both", color=theme["line"], linewidth=0.6)
    size = float(np.clip(12000 / max(len(points), 1), 3, 22))
    common = {"s": size, "linewidths": 0, "alpha": 0.8, "rasterized": True}
    bare = labels < 0
    ax.scatter(*points[bare].T, color=theme["train" if not present else "muted"], **common)
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


def _draw_rates(theme, kl_D):
    figure = _figure(9, 2.2)
    ax = figure.subplots()
    _style(ax, theme)
    ax.bar(np.arange(1, len(kl_D) + 1), kl_D, width=0.8, color=theme["train"])
    ax.set_xlim(0.4, max(len(kl_D), 12) + 0.6)  # two dimensions are two bars, not two walls
    ax.set_xlabel("latent dimension, by rank", fontsize=8.5, color=theme["muted"])
    ax.set_ylabel("nats", fontsize=8.5, color=theme["muted"])
    return figure


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


def _draw_confusion(theme, confusion_YxY, classes):
    from matplotlib.colors import to_rgb

    y = len(confusion_YxY)
    size = min(max(3.2, 0.46 * y + 1.2), 9)
    figure = _figure(size, size)
    ax = figure.subplots()
    _style(ax, theme)
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


def _confusion_table(confusion_YxY, classes):
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


# --- words ---------------------------------------------------------------------------------------


def _words(key):
    words = key.replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _plain(value):
    """Any value as short text; whole numbers with separators, others with four digits."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_plain(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value) or "none"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, numbers.Integral):
        return f"{value:,}".replace("-", "−")
    text = f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return text.replace("-", "−")


def _setting(value):
    """A config value as it would be typed: no separators, no rounding."""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value) if value != "" else "''"


def _duration(seconds):
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _metric(key, value, why):
    """One row of the table: {key, name, text, unit, better, meaning}."""
    units = {"nats": "nats", "bits": "bits", "s": "seconds"}
    unit = units.get(key.rpartition("_")[2], "")
    name, unit, form, better, meaning = METRICS.get(key, (_words(key), unit, None, "", ""))
    text = _plain(value)
    if form and isinstance(value, numbers.Real):
        text = form.format(value).replace("-", "−")
        if unit == "%":
            text = text.replace("%", " %")
    if value is None and key in why:
        meaning = str(why[key])
    unit = "" if unit == "%" else unit
    return {"key": key, "name": name, "text": text, "unit": unit, "better": better, "meaning": meaning}


def _key_figures(metrics):
    """Up to four figures for the top of the page, each with a line under it."""
    figures = []
    for key in KEY_FIGURES:
        if metrics.get(key) is None or len(figures) == 4:
            continue
        row = _metric(key, metrics[key], {})
        note, error = row["unit"], ""
        if key == "accuracy" and metrics.get("n"):
            note = f"of {metrics['n']:,} test images"
        if key == "iw_nats":
            if metrics.get("iw_nats_se") is not None:
                error = _metric("iw_nats_se", metrics["iw_nats_se"], {})["text"]
            if metrics.get("iw_k"):
                note += f", K = {metrics['iw_k']:,}"
        figures.append(row | {"note": note, "error": error})
    return figures


def print_summary(metrics, path):
    """The key figures and where the report is, as plain lines for a terminal."""
    rows = [("test images", f"{metrics['n']:,}")] if metrics.get("n") is not None else []
    for f in _key_figures(metrics):
        error = f" +- {f['error']}" if f["error"] else ""
        note = "" if f["key"] == "accuracy" else f" {f['note']}"
        name = f["name"] if f["name"].isupper() else f["name"][:1].lower() + f["name"][1:]
        rows.append((name, (f["text"] + error + note).replace("−", "-").rstrip()))
    rows.append(("report", path))
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        print(f"{name:<{width}}  {text}")


# --- the page ------------------------------------------------------------------------------------


def _config_groups(config):
    """[(section, [(field, value), ...]), ...]: top-level fields first, deeper ones by dotted name."""
    top = [(k, _setting(v)) for k, v in config.items() if not isinstance(v, dict)]
    groups = [("", top)] if top else []
    for name, section in config.items():
        if isinstance(section, dict):
            groups.append((name, [(k, _setting(v)) for k, v in flatten(section).items()]))
    return groups


def _run_rows(run):
    rows = []
    for key in [k for k in RUN if k in run] + [k for k in run if k not in RUN and k != "why"]:
        value = run[key]
        text = _duration(value) if key.endswith("seconds") and isinstance(value, numbers.Real) else _plain(value)
        if key == "seed":
            text = str(value)
        rows.append({"name": RUN.get(key, _words(key)), "text": text, "code": key in ("command", "commit")})
    return rows


def write(folder, *, title, metrics, pictures, history, config, run, classes):
    """Write ``folder/index.html`` and each picture as a PNG beside it.

    Args:
      folder: made where missing. PNGs of an earlier report that this one does not have are removed.
      title: the page's heading.
      metrics: flat, units in the names; None where a figure has no meaning. Keys unknown to
        :data:`METRICS` are shown too.
      pictures: :class:`Pictures`.
      history: rows of ``metrics.jsonl`` (:func:`read_history`).
      config: nested dict.
      run: facts of the run (:data:`RUN`, others as they are); ``run["why"]`` maps a metric that is
        None to the reason.
      classes: names of the classes, () where there are none.

    Returns:
      The path of ``index.html``.

    Raises:
      UserError: the folder cannot be written.
    """
    import jinja2

    files, page = {}, {}
    p = pictures
    grids = {}
    if _has(p.originals) and _has(p.reconstructions):
        grids["reconstructions"] = ([p.originals, p.reconstructions], _columns(len(p.originals)))
    if _has(p.samples):
        grids["samples"] = ([p.samples], _columns(len(p.samples)))
    if _has(p.interpolations):
        walks = np.asarray(p.interpolations)
        grids["interpolations"] = ([walks.reshape(-1, *walks.shape[2:])], walks.shape[1])
    for name, (stacks, columns) in grids.items():
        canvas = _grid(stacks, columns)
        files[name] = _png(canvas)
        height, width = canvas.shape[:2]
        page[name] = {"uri": _uri(files[name], "png"), "width": width // 2, "height": height // 2, "n": len(stacks[0])}
    if _has(p.latents, 2):

        def draw(theme):
            return _draw_latents(theme, p.latents, p.latent_labels, classes)

        named = p.latent_labels is not None and len(np.unique(p.latent_labels)) <= TABLE_CLASSES
        files["latents"] = _figure_png(draw(LIGHT))
        page["latents"] = _both(draw) | {"n": len(p.latents), "dims": np.shape(p.latents)[1], "named": named}
    if p.kl_per_dimension is not None:
        kl_D = np.asarray(p.kl_per_dimension)
        files["rates"] = _figure_png(_draw_rates(LIGHT, kl_D))
        few = f"{kl_D[0]:.2f} nats in the first of {len(kl_D)} dimensions, {kl_D[-1]:.4f} in the last"
        page["rates"] = _recoloured(lambda theme: _draw_rates(theme, kl_D)) | {"alt": few}
    if _has(p.confusion) and np.sum(p.confusion):
        confusion = np.asarray(p.confusion)

        def draw_confusion(theme):
            return _draw_confusion(theme, confusion, classes)

        files["confusion"] = _figure_png(draw_confusion(LIGHT))
        page["confusion"] = _confusion_table(confusion, classes)
        if len(confusion) > TABLE_CLASSES:
            page["confusion"] |= _both(draw_confusion)
    keys = list(CURVES) + [k for k in dict.fromkeys(k for row in history for k in row) if k not in CURVES]
    series = {k: s for k in keys if (s := _series(history, k))}
    if series:
        files["curves"] = _figure_png(_draw_curves(series))
        panels = {k: _curve_panel(k, s) for k, s in series.items()}
        page["curves"] = [v for k, v in panels.items() if k in CURVES]
        page["more_curves"] = [v for k, v in panels.items() if k not in CURVES]

    loader = jinja2.FileSystemLoader(os.path.join(os.path.dirname(__file__), "templates"))
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    why = run.get("why") or {}
    facts = [run.get("dataset"), f"{_plain(run['parameters'])} parameters" if "parameters" in run else None]
    facts += [run.get("device"), str(run.get("date", ""))[:10]]
    html = environment.get_template("report.html.j2").render(
        title=title,
        facts=[_plain(f) for f in facts if f],
        figures=_key_figures(metrics),
        metrics=[
            _metric(k, metrics[k], why) for k in [*METRICS, *(k for k in metrics if k not in METRICS)] if k in metrics
        ],
        page={name: page.get(name) for name in (*PICTURES, "more_curves")},
        config=_config_groups(config),
        run=_run_rows(run),
        light=LIGHT,
        dark=DARK,
    )
    for name, data in files.items():
        _replace(os.path.join(folder, f"{name}.png"), data)
    index = os.path.join(folder, "index.html")
    _replace(index, html.encode())
    for name in set(PICTURES) - set(files):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, f"{name}.png"))
    return index


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
    _replace(path, buffer.getvalue())


if __name__ == "__main__":  # python -m vae_jax.report runs/digits/report results/digits.png
    import sys

    banner(*sys.argv[1:3])
