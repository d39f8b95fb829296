"""Panels of the report: the file of each picture, and what the template shows of it."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vae_jax.report import anomaly, densities, pictures, plots, scenes, words
from vae_jax.report.explorer import Explorer
from vae_jax.report.plots import Lines
from vae_jax.report.strips import sprite
from vae_jax.train.film import Frames

ROWS = ("levels", "temperatures", "inpainting", "neighbours")  # rows of different kinds of images
CURVES = {  # key of a history row → (name, unit)
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
    "host_skew_ms": ("Slowest host behind the fastest", "ms / step"),
    "lr": ("Learning rate", ""),
}
STRENGTHS = {
    "noise": "standard deviation, of the grey scale",
    "blur": "standard deviation, of the side",
    "occlusion": "side of the square, of the image's",
}
ATTACKS = {
    "fgsm": "FGSM",
    "pgd": "PGD, 20 steps",
    "fgsm_drawn": "FGSM, code drawn",
    "pgd_drawn": "PGD, code drawn",
    "fgsm_bayes": "FGSM on Bayes' rule",
    "pgd_bayes": "PGD on Bayes' rule",
    "worst": "APGD or Square",
    "worst_drawn": "APGD or Square, code drawn",
    "worst_bayes": "APGD or Square on Bayes' rule",
}
READINGS = {"": "accuracy", "_bayes": "by Bayes' rule"}


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
    kl_per_level: np.ndarray | None = None  # L, nats, the top level first
    levels: list | None = None  # [test images, reconstructions with more and more levels from q]
    temperatures: list | None = None  # samples, colder ones first
    inpainting: list | None = None  # [test images with a grey half, the same with it filled in]
    neighbours: list | None = None  # [samples, the training image that is nearest to each]
    # Of eval.py --tasks; curves are {label: (x, y)}.
    retrieval: tuple | None = None  # queries QxHxWxC, neighbours QxKxHxWxC, same class QxK
    reliability: dict | None = None  # {label: (n, accuracy, confidence) of each bin}
    verification: dict | None = None  # ROC curves
    rejection: dict | None = None  # accuracy against the share kept
    robustness: dict | None = None  # accuracy against the strength
    # {data set: {"auroc": {score: (value, low, high)}, "scores": {score: (inside, outside)}}}
    ood: dict | None = None
    scenes: dict | None = None  # of report.scenes.views
    anomaly: anomaly.Maps | None = None
    densities: densities.Samples | None = None  # of tools.density
    film: Frames | None = None  # of each validation
    explorer: Explorer | None = None  # test images that the page's script shows


class Panel(NamedTuple):
    png: bytes  # the file beside the page
    view: dict[str, Any]  # what the template shows


class Curve(NamedTuple):
    """One metric over the steps of training."""

    key: str
    name: str
    unit: str
    series: dict[str, tuple[list, list]]  # split → (steps, values)

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (self.name, self.unit)))


def _not_empty(array: Sequence | np.ndarray | None, least: int = 1) -> bool:
    return array is not None and len(array) >= least


def _walks(images_RxSxHxWxC: np.ndarray) -> tuple[list[np.ndarray], int]:
    """Images for a grid with a row for each walk, and its number of columns."""
    return [images_RxSxHxWxC.reshape(-1, *images_RxSxHxWxC.shape[2:])], images_RxSxHxWxC.shape[1]


def image_panels(p: Pictures) -> dict[str, Panel]:
    """Grids of images, pixel by pixel."""
    grids = {}
    if _not_empty(p.originals) and _not_empty(p.reconstructions):
        stacks = [p.originals, p.reconstructions]
        grids["reconstructions"] = (stacks, pictures.columns(len(p.originals)))
    if _not_empty(p.samples):
        grids["samples"] = ([p.samples], pictures.columns(len(p.samples)))
    if _not_empty(p.interpolations):
        grids["interpolations"] = _walks(np.asarray(p.interpolations))
    if p.explorer is not None and p.explorer.traversals is not None:
        grids["traversals"] = _walks(p.explorer.traversals / 255)
    for name in ROWS:
        stacks = getattr(p, name)
        if _not_empty(stacks):
            grids[name] = (stacks, pictures.columns(len(stacks[0])))
    canvases = {name: pictures.grid(*parts) for name, parts in grids.items()}
    if p.retrieval is not None:
        canvases["retrieval"] = pictures.gallery(*p.retrieval)
    panels = {}
    for name, canvas in canvases.items():
        png = pictures.png(canvas)
        height, width = canvas.shape[:2]
        view = {"uri": pictures.uri(png, "png"), "width": width // 2, "height": height // 2}
        panels[name] = Panel(png, view)
    if p.film is not None:
        panels["film"] = _film_panel(p.film)
    return panels


def _film_panel(film: Frames) -> Panel:
    """A row for each frame, a pixel for a pixel: the page enlarges it."""
    frames, columns, height, width = film.images.shape[:4]
    png = sprite(film.images.reshape(-1, *film.images.shape[2:]), columns)
    view = {"uri": pictures.uri(png, "png"), "width": 56 * columns}
    return Panel(png, view | {"height": round(56 * frames * height / width), "steps": film.steps})


def figure_panels(p: Pictures, classes: Sequence[str]) -> dict[str, Panel]:
    """The latent map, the rates and the confusion matrix."""
    panels = {}
    if _not_empty(p.latents, 2):
        style = {"latents_PxD": p.latents, "labels_P": p.latent_labels, "classes": classes}
        png, drawn = pictures.everywhere(functools.partial(plots.draw_latents, **style))
        count = 0 if p.latent_labels is None else len(np.unique(p.latent_labels))
        named = 0 < count <= pictures.TABLE_CLASSES
        view = {"n": len(p.latents), "dims": np.shape(p.latents)[1], "named": named}
        panels["latents"] = Panel(png, drawn | view)
    bars = {
        "rates": ("latent dimension, by rank", p.kl_per_dimension),
        "level_rates": ("level", p.kl_per_level),
    }
    for name, (axis, values) in bars.items():
        if values is None:
            continue
        draw = functools.partial(plots.draw_rates, kl_D=np.asarray(values), axis=axis)
        png, drawn = pictures.everywhere(draw)
        first = f"{values[0]:.2f} nats in the first of {len(values)}"
        panels[name] = Panel(png, drawn | {"alt": f"{first}, {values[-1]:.4f} in the last"})
    if _not_empty(p.confusion) and np.sum(p.confusion):
        confusion = np.asarray(p.confusion)
        style = {"confusion_YxY": confusion, "classes": classes}
        draw = functools.partial(plots.draw_confusion, **style)
        view = pictures.confusion_table(confusion, classes)
        if len(confusion) > pictures.TABLE_CLASSES:
            view |= pictures.both(draw)
        panels["confusion"] = Panel(pictures.figure_png(draw(pictures.LIGHT)), view)
    return panels


# --- panels of eval.py --tasks -------------------------------------------------------------------


def _task_panel(heading: str, caption: str, alt: str, draw: pictures.Draw) -> Panel:
    png, drawn = pictures.everywhere(draw)
    view = {"heading": heading, "caption": caption, "alt": alt, "narrow": False}
    return Panel(png, view | drawn)


def _line_panel(heading: str, caption: str, axes: Sequence[Lines]) -> Panel:
    ends = []
    for lines in axes:
        for label, (_, y) in lines.curves.items():
            ends.append(f"{lines.title}, {label}: {y[-1]:.1%} at the end")
    draw = functools.partial(plots.draw_lines, axes=axes)
    return _task_panel(heading, caption, "; ".join(ends), draw)


def _reliability_panel(reliability: Mapping[str, plots.Bins], note: str) -> Panel:
    caption = (
        "Accuracy of the test images in 15 bins of confidence, and the number of images in each "
        "bin; on the dotted line accuracy and confidence are equal. " + note
    )
    counts = []
    for label, (n, _, _) in reliability.items():
        last = int(np.flatnonzero(n)[-1])
        counts.append(f"{label}: {int(n[last]):,} of {int(np.sum(n)):,} images in the last bin")
    draw = functools.partial(plots.draw_reliability, reliability=reliability)
    panel = _task_panel("Reliability", caption.strip(), "; ".join(counts), draw)
    return panel._replace(view=panel.view | {"narrow": True})


def _robustness_axes(robustness: Mapping[str, plots.Curve]) -> list[Lines]:
    axes = []
    for name, strength in STRENGTHS.items():
        curves = {}
        for suffix, label in READINGS.items():
            if name + suffix in robustness:
                curves[label] = robustness[name + suffix]
        if curves:
            axes.append(Lines(name, strength, curves))
    attacks = {ATTACKS[key]: curve for key, curve in robustness.items() if key in ATTACKS}
    return [*axes, Lines("attacks", "ε, of the grey scale", attacks)]


def _ood_panel(name: str, result: Mapping[str, Any]) -> Panel:
    caption = (
        "How well each score separates these images from the test set: 1 always, 0.5 by chance, "
        "less where the order is reversed; bars are 95 % intervals. Beside them the scores of "
        "both sets: −ELBO in bits, and the best one."
    )
    rows = []
    for score, (value, low, high) in result["auroc"].items():
        rows.append(f"{score}: AUROC {value:.3f}, {low:.3f} to {high:.3f}")
    draw = functools.partial(plots.draw_ood, name=name, **result)
    return _task_panel(f"Out of distribution: {name}", caption, "; ".join(rows), draw)


def task_panels(p: Pictures, note: str = "", classes: Sequence[str] = ()) -> dict[str, Panel]:
    """Panels of what ``eval.py --tasks`` has added; ``note`` is said below the reliability."""
    panels = {}
    if p.scenes is not None:
        for name, parts in scenes.views(p.scenes, classes).items():
            panels[name] = _task_panel(*parts)
    if p.reliability is not None:
        panels["reliability"] = _reliability_panel(p.reliability, note)
    axes = []
    if p.verification is not None:
        x_name = "different classes taken for one"
        axes.append(Lines("same class recognised", x_name, p.verification, diagonal=True))
    if p.rejection is not None:
        axes.append(Lines("accuracy of what is kept", "share kept", p.rejection))
    if axes:
        caption = "Classes held out of training: pairs of their images, and against the test set."
        panels["recognition"] = _line_panel("Unseen classes", caption, axes)
    if p.robustness is not None:
        caption = "Accuracy on corrupted and adversarial images; attacks know the net's gradients."
        panels["robustness"] = _line_panel("Robustness", caption, _robustness_axes(p.robustness))
    for name, result in (p.ood or {}).items():
        panels["ood_" + re.sub(r"\W+", "_", name, flags=re.ASCII)] = _ood_panel(name, result)
    if p.anomaly is not None:
        draw = functools.partial(anomaly.draw, maps=p.anomaly)
        alt = anomaly.alt(p.anomaly)
        panels["anomaly"] = _task_panel(anomaly.HEADING, anomaly.CAPTION, alt, draw)
    if p.densities is not None:
        draw = functools.partial(densities.draw, samples=p.densities)
        alt = f"Rows of images: {', '.join(p.densities)}"
        panels["densities"] = _task_panel(densities.HEADING, densities.CAPTION, alt, draw)
    return panels


# --- curves of training --------------------------------------------------------------------------


def _series(history: Sequence[Mapping[str, Any]], key: str) -> dict[str, tuple[list, list]]:
    """{split: (steps, values)} of the splits with a finite value; NaN where one is not finite."""
    series = {}
    for row in history:
        if key in row:
            steps, values = series.setdefault(row.get("split", "train"), ([], []))
            steps.append(row["step"])
            values.append(words.number(row[key]))
    return {split: curve for split, curve in series.items() if np.isfinite(curve[1]).any()}


def curves(history: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The curves of a history that have a finite value, in the order of the page."""
    keys = dict.fromkeys(CURVES)
    for row in history:
        keys |= dict.fromkeys(row)
    result = []
    for key in keys:
        series = {} if key in ("step", "split") else _series(history, key)
        if series:
            name, unit = (CURVES | MORE_CURVES).get(key, (words.title(key), ""))
            result.append(Curve(key, name, unit, series))
    return result


def _curve_view(curve: Curve) -> dict[str, Any]:
    def draw(theme: pictures.Theme) -> Any:
        figure, (ax,) = pictures.panels(1, 4, 2.4, top=0.1)
        plots.draw_curve(ax, theme, curve.key, curve.series)
        return figure

    last = {}
    for split, (steps, values) in curve.series.items():
        i = np.flatnonzero(np.isfinite(values))[-1]
        text = words.short(values[i])
        if curve.key.endswith("accuracy"):
            text = f"{values[i]:.2%}"
        last[split] = (steps[i], text)
    ends = "; ".join(f"{split}: {value} at step {step}" for split, (step, value) in last.items())
    view = {"name": curve.name, "unit": curve.unit, "last": last}
    return view | {"alt": f"{curve.name} over the steps. {ends}."} | pictures.recoloured(draw)


def curve_panel(history: Sequence[Mapping[str, Any]]) -> dict[str, Panel]:
    """The one panel of all curves; {} where the history has none."""
    every = curves(history)
    if not every:
        return {}
    series = {curve.key: curve.series for curve in every}
    figure = plots.draw_curves(series, {curve.key: curve.title for curve in every})
    view = {"first": [], "more": []}
    for curve in every:
        view["first" if curve.key in CURVES else "more"].append(_curve_view(curve))
    return {"curves": Panel(pictures.figure_png(figure), view)}
