"""What a run came to: one page that a person opens, and its words on the terminal.

The page (:func:`write`) needs no network, no script and no other file: pictures are inside it, once
for a light screen and once for a dark one.
"""

import functools
import math
import numbers
import os
import re
from typing import NamedTuple

import numpy as np
from etils import epath

from vae_jax.config import flatten
from vae_jax.mesh import store
from vae_jax.report import pictures as draw
from vae_jax.train import log

ROWS = ("levels", "temperatures", "inpainting", "neighbours")  # pictures whose rows are different things
PICTURES = (
    *("reconstructions", "samples", *ROWS, "interpolations", "latents", "rates", "level_rates", "confusion", "curves"),
    *("retrieval", "reliability", "recognition", "robustness"),
)

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
    "brier": (
        "Brier score",
        "",
        "{:.4f}",
        "lower",
        "Mean squared distance of the probabilities from the truth; at most 2.",
    ),
    "macro_f1": ("Macro F1", "%", "{:.2%}", "higher", "Mean over the classes of the F1 score."),
    "temperature": (
        "Temperature",
        "",
        "{:.3f}",
        "",
        "What the logits are divided by to be calibrated; fitted on validation.",
    ),
    "calibrated_cross_entropy_nats": ("… cross-entropy with it", "nats", "{:.4f}", "lower", "On the test set."),
    "calibrated_ece": ("… calibration error with it", "%", "{:.2%}", "lower", "On the test set."),
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
    "bayes_accuracy": (
        "Accuracy by Bayes' rule",
        "%",
        "{:.2%}",
        "higher",
        "The label under which the importance-weighted bound on log p(x|y) is the highest.",
    ),
    "bayes_cross_entropy_nats": ("… cross-entropy", "nats", "{:.4f}", "lower", "−log p(y|x) by the same rule."),
    "bayes_ece": ("… calibration error", "%", "{:.2%}", "lower", "ECE by the same rule."),
    "bayes_rejection_accuracy": (
        "… accuracy over rejection",
        "%",
        "{:.2%}",
        "higher",
        "Mean over all shares of images kept, those of the highest log p(x) first.",
    ),
    "knn1_accuracy": (
        "1-NN accuracy",
        "%",
        "{:.2%}",
        "higher",
        "Images whose nearest training image is of their class.",
    ),
    "map_at_10": (
        "Retrieval, mAP@10",
        "%",
        "{:.2%}",
        "higher",
        "Mean average precision of the ten nearest training images, those of the same class being right.",
    ),
    "verification_auroc": (
        "Verification AUROC",
        "%",
        "{:.2%}",
        "higher",
        "Pairs of images of classes unseen in training: same class or not, by the cosine of their codes.",
    ),
    "verification_eer": (
        "… equal error rate",
        "%",
        "{:.2%}",
        "lower",
        "Where both kinds of error are equally frequent.",
    ),
    "open_set_confidence_auroc": (
        "Open set, by confidence",
        "%",
        "{:.2%}",
        "higher",
        "AUROC of unseen classes against the test set, by the largest probability.",
    ),
    "open_set_latent_auroc": (
        "… by the code",
        "%",
        "{:.2%}",
        "higher",
        "The same by the distance to the training codes.",
    ),
    "rejection_accuracy": (
        "… accuracy over rejection",
        "%",
        "{:.2%}",
        "higher",
        "Mean over all shares of images kept, the most confident first; an unseen class is an error.",
    ),
    "noise_accuracy": (
        "Accuracy under noise",
        "%",
        "{:.2%}",
        "higher",
        "Mean over five strengths, as are the next ones.",
    ),
    "blur_accuracy": ("… blur", "%", "{:.2%}", "higher", "A Gaussian blur."),
    "occlusion_accuracy": ("… occlusion", "%", "{:.2%}", "higher", "A grey square hides a part."),
    "fgsm_accuracy": ("… FGSM", "%", "{:.2%}", "higher", "One step along the sign of the gradient."),
    "pgd_accuracy": ("… PGD", "%", "{:.2%}", "higher", "Twenty steps."),
    "fgsm_drawn_accuracy": ("… FGSM, code drawn", "%", "{:.2%}", "higher", "Against the mean over draws of z."),
    "pgd_drawn_accuracy": ("… PGD, code drawn", "%", "{:.2%}", "higher", "Against the mean over draws of z."),
    "noise_bayes_accuracy": ("Bayes' rule under noise", "%", "{:.2%}", "higher", "Each label's bound from draws."),
    "blur_bayes_accuracy": ("… blur", "%", "{:.2%}", "higher", "A Gaussian blur."),
    "occlusion_bayes_accuracy": ("… occlusion", "%", "{:.2%}", "higher", "A grey square hides a part."),
    "fgsm_bayes_accuracy": ("… FGSM", "%", "{:.2%}", "higher", "Against the posterior by Bayes' rule."),
    "pgd_bayes_accuracy": ("… PGD", "%", "{:.2%}", "higher", "Twenty steps, fresh draws in each."),
    "ood_images": ("Images asked for strangers", "", "{:,}", "", "Of the test set, an even stride apart."),
    "ood_waic_auroc": (
        "… WAIC of an ensemble",
        "",
        "{:.3f}",
        "higher",
        "AUROC by the spread of several seeds' bounds.",
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
    "host_skew_ms": ("Slowest host behind the fastest", "ms / step"),
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
    levels: list | None = None  # [test images, then reconstructions with more and more levels from q]
    temperatures: list | None = None  # samples, colder ones first
    inpainting: list | None = None  # [test images with half of them grey, the same with that half made up]
    neighbours: list | None = None  # [samples, the training image that is nearest to each]
    # Of eval.py --tasks; curves are {label: (x, y)}.
    retrieval: tuple | None = None  # images QxHxWxC, those found for each QxKxHxWxC, whether of its class QxK
    reliability: dict | None = None  # {label: (n, accuracy, confidence) of each bin}
    verification: dict | None = None  # ROC curves
    rejection: dict | None = None  # accuracy against the share kept
    robustness: dict | None = None  # accuracy against the strength
    ood: dict | None = None  # {data set: {"auroc": {score: (value, low, high)}, "scores": {score: (inside, outside)}}}


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


def _titled(key):
    """(name, unit) of a curve."""
    return (CURVES | MORE_CURVES).get(key, (_words(key), ""))


def _curve_panel(key, series):
    name, unit = _titled(key)

    def curve(theme):
        figure, (ax,) = draw.panels(1, 4, 2.4, top=0.1)
        draw.draw_curve(ax, theme, key, series)
        return figure

    last = {}
    for split, (steps, values) in series.items():
        at = np.flatnonzero(np.isfinite(values))[-1]
        last[split] = (steps[at], f"{values[at]:.2%}" if key.endswith("accuracy") else _plain(values[at]))
    alt = "; ".join(f"{split}: {value} at step {step}" for split, (step, value) in last.items())
    return {"name": name, "unit": unit, "last": last, "alt": f"{name} over the steps. {alt}.", **draw.recoloured(curve)}


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


STRENGTHS = {
    "noise": "standard deviation, of the grey scale",
    "blur": "standard deviation, of the side",
    "occlusion": "side of the square, of the image's",
    "attacks": "ε, of the grey scale",
}
ATTACKS = {
    "fgsm": "FGSM",
    "pgd": "PGD, 20 steps",
    "fgsm_drawn": "FGSM, code drawn",
    "pgd_drawn": "PGD, code drawn",
    "fgsm_bayes": "FGSM on Bayes' rule",
    "pgd_bayes": "PGD on Bayes' rule",
}
READINGS = {"": "accuracy", "_bayes": "by Bayes' rule"}


def _panels(p):
    """{name: (heading, caption, alt, draw(theme))} of what eval.py --tasks has added."""
    panels = {}

    def lines(name, heading, caption, axes):
        last = "; ".join(
            f"{t}, {k}: {y[-1]:.1%} at the end" for t, _, curves, _ in axes for k, (_, y) in curves.items()
        )
        panels[name] = (heading, caption, last, lambda theme: draw.draw_lines(theme, axes))

    if p.reliability is not None:
        curves = {
            k: (np.asarray(c)[np.asarray(n) > 0], np.asarray(a)[np.asarray(n) > 0])
            for k, (n, a, c) in p.reliability.items()
        }
        caption = "Accuracy of the test images in 15 bins of confidence; on the dotted line both are the same."
        lines("reliability", "Reliability", caption, [("accuracy", "confidence", curves, True)])
    found = []
    if p.verification is not None:
        found.append(("same class recognised", "different classes taken for one", p.verification, True))
    if p.rejection is not None:
        found.append(("accuracy of what is kept", "share kept", p.rejection, False))
    if found:
        caption = (
            "On classes that training never saw: pairs of their images, and their images among those of the test set."
        )
        lines("recognition", "Unseen classes", caption, found)
    if p.robustness is not None:
        read = lambda k: {v: p.robustness[k + end] for end, v in READINGS.items() if k + end in p.robustness}  # noqa: E731
        axes = [(k, label, read(k), False) for k, label in STRENGTHS.items() if k in p.robustness]
        attacks = {ATTACKS[k]: c for k, c in p.robustness.items() if k in ATTACKS}
        caption = "Accuracy on images made worse, and made to mislead: each attack knows the net and its gradients."
        lines("robustness", "Robustness", caption, [*axes, ("attacks", STRENGTHS["attacks"], attacks, False)])
    for name, given in (p.ood or {}).items():
        caption = (
            "How well each score tells these images from the test set: 1 always, 0.5 by chance, less the wrong way "
            "round; bars are 95 % intervals. Beside them the scores of both sets: −ELBO in bits, and the best one."
        )
        alt = "; ".join(
            f"{score}: AUROC {v:.3f}, {low:.3f} to {high:.3f}" for score, (v, low, high) in given["auroc"].items()
        )
        drawn = functools.partial(draw.draw_strangers, name=name, **given)
        panels["ood_" + re.sub(r"\W+", "_", name)] = (f"Strangers: {name}", caption, alt, drawn)
    return panels


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
        grids["reconstructions"] = ([p.originals, p.reconstructions], draw.columns(len(p.originals)))
    if _has(p.samples):
        grids["samples"] = ([p.samples], draw.columns(len(p.samples)))
    if _has(p.interpolations):
        walks = np.asarray(p.interpolations)
        grids["interpolations"] = ([walks.reshape(-1, *walks.shape[2:])], walks.shape[1])
    for name in ROWS:
        if _has(getattr(p, name)):
            grids[name] = (getattr(p, name), draw.columns(len(getattr(p, name)[0])))
    canvases = {name: (draw.grid(stacks, columns), len(stacks[0])) for name, (stacks, columns) in grids.items()}
    if p.retrieval is not None:
        canvases["retrieval"] = (draw.gallery(*p.retrieval), len(p.retrieval[0]))
    for name, (canvas, n) in canvases.items():
        files[name] = draw.png(canvas)
        height, width = canvas.shape[:2]
        page[name] = {
            "uri": draw.uri(files[name], "png"),
            "width": width // 2,
            "height": height // 2,
            "n": n,
        }
    if _has(p.latents, 2):

        def latents(theme):
            return draw.draw_latents(theme, p.latents, p.latent_labels, classes)

        named = p.latent_labels is not None and len(np.unique(p.latent_labels)) <= draw.TABLE_CLASSES
        files["latents"], drawn = draw.everywhere(latents)
        page["latents"] = drawn | {"n": len(p.latents), "dims": np.shape(p.latents)[1], "named": named}
    bars = {"rates": ("latent dimension, by rank", p.kl_per_dimension), "level_rates": ("level", p.kl_per_level)}
    for name, (axis, values) in bars.items():
        if values is not None:
            picture = functools.partial(draw.draw_rates, kl_D=np.asarray(values), axis=axis)
            files[name], drawn = draw.everywhere(picture)
            few = f"{values[0]:.2f} nats in the first of {len(values)}, {values[-1]:.4f} in the last"
            page[name] = drawn | {"alt": few}
    if _has(p.confusion) and np.sum(p.confusion):
        confusion = np.asarray(p.confusion)

        def draw_confusion(theme):
            return draw.draw_confusion(theme, confusion, classes)

        files["confusion"] = draw.figure_png(draw_confusion(draw.LIGHT))
        page["confusion"] = draw.confusion_table(confusion, classes)
        if len(confusion) > draw.TABLE_CLASSES:
            page["confusion"] |= draw.both(draw_confusion)
    page["panels"] = []
    for name, (heading, caption, alt, draw_panel) in _panels(p).items():
        files[name], drawn = draw.everywhere(draw_panel)
        panel = {"name": name, "heading": heading, "caption": caption, "alt": alt}
        panel["narrow"] = name == "reliability"
        page["panels"].append(panel | drawn)
    keys = list(CURVES) + [k for k in dict.fromkeys(k for row in history for k in row) if k not in CURVES]
    series = {k: s for k in keys if (s := _series(history, k))}
    if series:
        files["curves"] = draw.figure_png(draw.draw_curves(series, {k: _titled(k) for k in series}))
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
            _metric(k, metrics[k], why)
            for k in [*METRICS, *(k for k in metrics if k not in METRICS and "@" not in k)]
            if k in metrics
        ],
        page={name: page.get(name) for name in (*PICTURES, "panels", "more_curves")},
        config=_config_groups(config),
        run=_run_rows(run),
        light=draw.LIGHT,
        dark=draw.DARK,
    )
    for name, data in files.items():
        log.replace(os.path.join(folder, f"{name}.png"), data)
    index = os.path.join(folder, "index.html")
    log.replace(index, html.encode())
    stale = {name for name in store.names(folder) if re.fullmatch(rf"({'|'.join(PICTURES)}|ood_\w+)\.png", name)}
    for name in stale - {f"{name}.png" for name in files}:
        epath.Path(folder, name).unlink(missing_ok=True)
    return index
